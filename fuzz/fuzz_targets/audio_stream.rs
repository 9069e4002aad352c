#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (fuzz_targets::target("audio_stream").run)(data);
});
