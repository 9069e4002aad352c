//! Changed seeds for every parser, on the stable toolchain: no panic, no hang, bounded memory.
//!
//! Runs `SPEECHVERSE_FUZZ_SECONDS` in all (default 60), or tries `SPEECHVERSE_FUZZ_INPUTS` in all where that
//! is set, shared by the parsers, one input at a time. The inputs are the same in the same order, as far as a
//! run gets; `SPEECHVERSE_FUZZ_SEED` makes others. What failed is written to a file that the message names
//! (an allocation beyond the limit ends the process at once: then it is `/dev/shm/fuzz-input-*`);
//! `fuzz/README.md` says how to run it again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "figures of a run, for who runs it by hand")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fuzz_targets::{TARGETS, Target, target};
use speechverse::util::random::SplitMix;

/// Most memory that a parser may take for one input; twice that, an allocation fails and ends the process.
const INPUT_MEMORY_BYTES_MAX: usize = 1 << 26;
/// Longest that a parser may take for one input, on a busy machine.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest input.
const INPUT_BYTES_MAX: usize = 1 << 18;

/// The system's allocator with a limit.
struct Limited;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
/// Most that was in use since it was last set.
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// What the parser at work found in use.
static BEFORE: AtomicUsize = AtomicUsize::new(0);
/// Held by the parser at work, so that its memory and time are its own.
static AT_WORK: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Limited = Limited;

// SAFETY: every call goes to the system's allocator with the arguments unchanged; a null pointer is a
// permitted answer.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        if in_use > BEFORE.load(Ordering::Relaxed) + 2 * INPUT_MEMORY_BYTES_MAX {
            IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: as required of our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as required of our caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A range of something `length` long, mostly short.
fn range(length: usize, random: &mut SplitMix) -> std::ops::Range<usize> {
    let from = random.below(length + 1);
    let most = 1 << random.below(12);
    from..(from + random.below(most + 1)).min(length)
}

/// Values that lengths, counts and offsets go wrong at.
const ODD_VALUES: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x00ff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Changes `input` in one place; `other` is another seed of the same parser.
fn change(input: &mut Vec<u8>, other: &[u8], random: &mut SplitMix) {
    let at = random.below(input.len());
    match random.below(9) {
        0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        1 if !input.is_empty() => input[at] = random.bits() as u8,
        2 => {
            let width = 1 << random.below(4);
            let value = match random.below(3) {
                0 => (input.len() as u64)
                    .wrapping_add(random.bits() % 3)
                    .wrapping_sub(1),
                _ => ODD_VALUES[random.below(ODD_VALUES.len())],
            };
            let little = value.to_le_bytes();
            let mut bytes = little[..width].to_vec();
            if random.below(2) == 0 {
                bytes.reverse();
            }
            if at + width <= input.len() {
                input[at..at + width].copy_from_slice(&bytes);
            }
        }
        3 => drop(input.drain(range(input.len(), random))),
        4 => input.truncate(at),
        5 => {
            let copied = input[range(input.len(), random)].to_vec();
            input.splice(at..at, copied);
        }
        6 => {
            let copied = other[range(other.len(), random)].to_vec();
            input.splice(at..at, copied);
        }
        7 => {
            // Digits, so that numbers written as text change too.
            if let Some(digit) = input.iter_mut().skip(at).find(|byte| byte.is_ascii_digit()) {
                *digit = b'0' + (random.bits() % 10) as u8;
            }
        }
        _ => {
            let count = random.below(9);
            let added: Vec<u8> = (0..count).map(|_| random.bits() as u8).collect();
            input.splice(at..at, added);
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn variable(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return default;
    }
    text.parse()
        .unwrap_or_else(|_| panic!("{name} is {text:?}, expected a whole number"))
}

/// Where inputs are written before they are tried: what ends the process can be found there. In memory where
/// the system has such a folder, because the disk is slower than the parsers.
fn input_file(target: Target) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        memory
    } else {
        Path::new(env!("CARGO_TARGET_TMPDIR"))
    };
    folder.join(format!("fuzz-input-{}-{}", std::process::id(), target.name))
}

/// What the inputs of a parser took at most.
#[derive(Default)]
struct Most {
    time: Duration,
    bytes: usize,
}

/// Runs one parser on its seeds as they are, then on changed ones until its time is over.
fn survives(name: &str) {
    let _alone = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
    let target = target(name);
    let seeds = (target.seeds)();
    let mut most = Most::default();
    let mut accepted = 0;
    for (number, seed) in seeds.iter().enumerate() {
        accepted += usize::from(try_one(target, seed, &format!("seed {number}"), &mut most));
    }
    assert!(
        accepted > 0,
        "{name}: no seed is accepted, so its changes test nothing"
    );
    let share = Duration::from_secs(variable("SPEECHVERSE_FUZZ_SECONDS", 60)) / TARGETS.len() as u32;
    let count = variable("SPEECHVERSE_FUZZ_INPUTS", 0).div_ceil(TARGETS.len() as u64);
    let begun = Instant::now();
    let seed = variable("SPEECHVERSE_FUZZ_SEED", 1);
    let mut random = SplitMix::from_state(
        seed ^ name
            .bytes()
            .fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte)),
    );
    let (mut tried, mut read) = (0_u64, 0_u64);
    let is_over = |tried| match count {
        0 => begun.elapsed() >= share,
        count => tried >= count,
    };
    while !is_over(tried) {
        let mut input = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        for _ in 0..=random.below(6) {
            change(&mut input, other, &mut random);
        }
        tried += 1;
        let which = format!("input {tried} of SPEECHVERSE_FUZZ_SEED={seed}");
        read += u64::from(try_one(target, &input, &which, &mut most));
    }
    println!(
        "{name}: {} seeds, {accepted} of them accepted, and {tried} changed inputs, {read} of them accepted, in {:.1} s; \
         at most {:.3} s and {:.1} MiB for one",
        seeds.len(),
        begun.elapsed().as_secs_f64(),
        most.time.as_secs_f64(),
        most.bytes as f64 / f64::from(1 << 20),
    );
}

/// Whether the parser accepts the input.
fn try_one(target: Target, input: &[u8], which: &str, most: &mut Most) -> bool {
    let path = input_file(target);
    std::fs::write(&path, input).unwrap();
    let before = IN_USE.load(Ordering::Relaxed);
    BEFORE.store(before, Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let begun = Instant::now();
    let outcome = catch_unwind(|| (target.run)(input));
    let elapsed = begun.elapsed();
    let bytes = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    most.time = most.time.max(elapsed);
    most.bytes = most.bytes.max(bytes);
    let kept = || {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-failed-{}", target.name));
        std::fs::copy(&path, &kept).unwrap();
        kept.display().to_string()
    };
    let name = target.name;
    assert!(
        elapsed < INPUT_TIME_MAX,
        "{name}: {which} takes {elapsed:?}; it is in {}",
        kept()
    );
    assert!(
        bytes < INPUT_MEMORY_BYTES_MAX,
        "{name}: {which} takes {bytes} bytes; it is in {}",
        kept()
    );
    outcome.unwrap_or_else(|_| panic!("{name}: {which} makes it panic; it is in {}", kept()))
}

/// One test for each parser, and one that none was forgotten.
macro_rules! parsers {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                survives(stringify!($name));
            }
        )*

        #[test]
        fn every_parser_has_a_test_here_and_a_binary_for_libfuzzer() {
            let tested = [$(stringify!($name)),*];
            let names = TARGETS.map(|target| target.name);
            assert_eq!(names.as_slice(), tested);
            let manifest = std::fs::read_to_string(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml"),
            )
            .unwrap();
            for name in names {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml lacks {name}");
            }
        }
    };
}

parsers!(
    adapter_manifest,
    audio,
    audio_stream,
    broker_frame,
    chat_template,
    chunks,
    gguf,
    manifest,
    record,
    safetensors,
    safetensors_index,
    store_segment,
    structure,
);

/// Tries one file again.
#[test]
#[ignore = "tries the file that SPEECHVERSE_FUZZ_INPUT names on the parser that SPEECHVERSE_FUZZ_TARGET names"]
fn one_input() {
    let name = std::env::var("SPEECHVERSE_FUZZ_TARGET").unwrap();
    let path = std::env::var("SPEECHVERSE_FUZZ_INPUT").unwrap();

    (target(&name).run)(&std::fs::read(path).unwrap());
}
