//! Threads of torch's CPU operators, and the trap in how they wait.
//!
//! libgomp's workers spin between parallel regions unless set not to. On a machine that others share, or
//! with more than one model thread, that makes everything up to sixty times slower. libgomp reads its
//! environment once, in its own start-up code before `main`, and has no call to change the policy afterwards.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// What makes libgomp's workers sleep at once. `PASSIVE` alone implies a spin count of zero; both are set
/// because either may have been inherited.
const PASSIVE: [(&str, &str); 2] = [("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")];
/// oneDNN keeps what it compiles for a shape, 1024 shapes unless set otherwise. Clips of every length make
/// new shapes all the time, and memory grew by 60 MB over some thousand requests; this many are enough for
/// the shapes that come back.
const COMPILED_SHAPES: (&str, &str) = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64");
/// Set in the second life of the process, so that there is no third.
const GUARD: &str = "SPEECHVERSE_OPENMP_CONFIGURED";

/// Makes OpenMP's workers sleep rather than spin while they wait, and bounds what oneDNN keeps: call it as
/// the very first thing in `main`.
///
/// Starts the program anew with the right environment (same process id, same arguments), because libgomp has
/// read the old one by the time `main` runs. Does nothing, and returns, when a wait policy is already chosen
/// (by a person or by the first call) or when the program cannot be started anew.
pub fn ensure_passive_openmp() {
    if std::env::var_os(COMPILED_SHAPES.0).is_none() {
        // SAFETY: the first thing in `main`: no other thread is there to read the environment.
        unsafe { std::env::set_var(COMPILED_SHAPES.0, COMPILED_SHAPES.1) };
    }
    let chosen = [GUARD, PASSIVE[0].0, PASSIVE[1].0];
    if chosen.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("speechverse"));
    let error = Command::new(own_program())
        .arg0(name)
        .args(arguments)
        .envs(PASSIVE)
        .env(GUARD, "1")
        .exec();
    tracing::warn!(%error, "could not restart with a passive OpenMP wait policy; set OMP_WAIT_POLICY=PASSIVE");
}

/// This program's file; by the kernel's handle when the file was replaced while we started.
fn own_program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// Sets how many threads one operator may use, for the calling thread and for those that have not used torch
/// yet.
///
/// `0` means the usual: `OMP_NUM_THREADS` if it is set, else as many as this process may use (container
/// limits counted). A thread that has already computed keeps its number, so each device thread calls this
/// once when it starts. Returns the number in force on the calling thread.
pub fn configure_threads(intra: usize) -> usize {
    let usual = || match std::env::var("OMP_NUM_THREADS")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(count) if count > 0 => count,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let count = if intra == 0 { usual() } else { intra };
    tch::set_num_threads(i32::try_from(count.clamp(1, 1024)).expect("1024 fits an i32"));
    threads()
}

/// Threads that one operator may use on the calling thread.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Names the file into which the child process writes its finding.
    const REPORT: &str = "SPEECHVERSE_TEST_OPENMP_REPORT";
    const ROUNDS: usize = 20;
    const IDLE: Duration = Duration::from_millis(20);

    /// CPU time of this process so far, all threads.
    fn cpu_time() -> Duration {
        let tasks = std::fs::read_dir("/proc/self/task").expect("every process has a first thread");
        let nanos = tasks.flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Not a test of its own: the body that the test below runs in a process of its own.
    #[test]
    fn child_that_reports_cpu_burnt_while_idle() {
        let Some(report) = std::env::var_os(REPORT) else {
            return;
        };
        ensure_passive_openmp();
        configure_threads(2);
        let matrix = tch::Tensor::ones([256, 256], (tch::Kind::Float, tch::Device::Cpu));
        let mut burnt = Duration::ZERO;
        for _ in 0..ROUNDS {
            let _ = matrix.matmul(&matrix);
            let before = cpu_time();
            std::thread::sleep(IDLE);
            burnt += cpu_time().saturating_sub(before);
        }
        let restarted = std::env::var_os(GUARD).is_some();
        std::fs::write(report, format!("{} {restarted}", burnt.as_micros()))
            .expect("the test folder is writable");
    }

    fn burnt_micros(policy: Option<&str>) -> (u128, bool) {
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("report");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args([
                "--exact",
                "nn::accel::threads::tests::child_that_reports_cpu_burnt_while_idle",
            ])
            .env(REPORT, &report)
            .env_remove("OMP_WAIT_POLICY")
            .env_remove("GOMP_SPINCOUNT")
            .env_remove(GUARD);
        if let Some(policy) = policy {
            child.env("OMP_WAIT_POLICY", policy);
        }
        let output = child.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = std::fs::read_to_string(report).unwrap();
        let (micros, restarted) = text.split_once(' ').unwrap();
        (micros.parse().unwrap(), restarted == "true")
    }

    #[test]
    fn after_the_restart_idle_workers_burn_no_cpu_and_an_active_policy_is_respected() {
        let idle_micros = IDLE.as_micros() * ROUNDS as u128;

        let (passive, restarted) = burnt_micros(None);
        assert!(restarted, "the child should have started itself anew");
        assert!(
            passive < idle_micros / 8,
            "{passive} µs of CPU burnt in {idle_micros} µs of idleness"
        );

        let (active, restarted) = burnt_micros(Some("ACTIVE"));
        assert!(!restarted, "a person's own choice must not be overridden");
        assert!(active > passive, "spinning {active} µs, passive {passive} µs");
    }

    #[test]
    fn the_number_of_threads_is_what_was_asked_for() {
        let found = std::thread::spawn(|| (configure_threads(1), configure_threads(3), configure_threads(0)))
            .join()
            .unwrap();

        assert_eq!((found.0, found.1), (1, 3));
        assert!(found.2 >= 1);
    }
}
