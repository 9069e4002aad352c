//! What the C library does with memory that libtorch has given back.

/// Blocks up to this size come from the heap, and so much free memory stays at its top: bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 1 << 30;

/// Keeps freed memory in the process instead of giving it back to the system after each operation.
///
/// libtorch's CPU tensors come from `malloc`, which maps every block from 32 MiB on anew and unmaps it when
/// it is freed; each page is then cleared by the kernel when it is first touched. In training that was a
/// third to a half of the processor time, in answering a tenth. Memory grows to the largest need so far and
/// stays there. All threads share one heap, because only the first one can hold such blocks. Variables of the
/// environment that set the same (`MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`) win. Does nothing on other C
/// libraries.
///
/// Call it before the first tensor.
///
/// Source: glibc 2.36, `malloc/malloc.c`, `do_set_mmap_threshold` and `do_set_trim_threshold`.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let set = |name: &str| std::env::var_os(name).is_some();
        if set("MALLOC_TRIM_THRESHOLD_") || set("MALLOC_MMAP_THRESHOLD_") || set("GLIBC_TUNABLES") {
            return;
        }
        // SAFETY: `mallopt` changes numbers of the allocator; no other thread runs yet that could read them
        // halfway, and any value is a valid one.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set in the child process, which alone changes its allocator.
    const CHILD: &str = "SPEECHVERSE_TEST_KEPT_MEMORY";
    const BLOCK: usize = 96 << 20;

    /// Pages that the kernel had to provide to this process so far.
    fn page_faults() -> i64 {
        // SAFETY: all zero is a valid `rusage`, and the call fills it.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` outlives the call.
        assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) }, 0);
        usage.ru_minflt
    }

    /// Page faults of filling a block that is freed afterwards.
    fn fill() -> i64 {
        let before = page_faults();
        let block = vec![1u8; BLOCK];
        std::hint::black_box(&block);
        page_faults() - before
    }

    #[test]
    fn a_block_that_was_freed_is_there_again_without_new_pages() {
        if std::env::var_os(CHILD).is_some() {
            keep_freed_memory();
            let (first, second) = (fill(), fill());
            assert!(first > 1000 && second < first / 20, "{first} {second}");
            return;
        }
        let module = module_path!().split_once("::").expect("a module of the crate").1;
        let name = format!("{module}::a_block_that_was_freed_is_there_again_without_new_pages");
        let mut child = Command::new(std::env::current_exe().unwrap());
        for variable in [
            "MALLOC_TRIM_THRESHOLD_",
            "MALLOC_MMAP_THRESHOLD_",
            "GLIBC_TUNABLES",
        ] {
            child.env_remove(variable);
        }
        // The test's thread is there before the setting: it would have a heap of its own.
        child.env("MALLOC_ARENA_MAX", "1").env(CHILD, "1");
        let status = child.args(["--exact", &name]).status().unwrap();
        assert!(status.success());
    }
}
