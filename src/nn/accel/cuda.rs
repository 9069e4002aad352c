//! Bringing in the CUDA half of libtorch at run time, where this machine has one.
//!
//! `libtorch_cuda.so` announces its kernels from static initialisers, so opening it is all that is needed. It
//! must happen before anything asks torch about CUDA: torch looks once and keeps what it found.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What was found when CUDA was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaState {
    /// The libtorch in use has no CUDA half.
    NotInstalled,
    /// libtorch has a CUDA half, this machine has no NVIDIA driver.
    NoDriver,
    /// The CUDA half is there and would not load, in the dynamic loader's words.
    LoadFailed(String),
    /// It loaded, and torch sees no device it can use.
    NoDevice,
    /// It loaded, and there are this many devices.
    Devices(usize),
}

impl fmt::Display for CudaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => f.write_str("the libtorch in use has no CUDA half"),
            Self::NoDriver => f.write_str("no NVIDIA driver on this machine"),
            Self::LoadFailed(why) => write!(f, "the CUDA half of libtorch did not load ({why})"),
            Self::NoDevice => f.write_str("CUDA loaded, but no usable device was found"),
            Self::Devices(1) => f.write_str("1 CUDA device found"),
            Self::Devices(count) => write!(f, "{count} CUDA devices found"),
        }
    }
}

/// The library this program is linked to.
const CPU_HALF: &str = "libtorch_cpu.so";
/// The library that lies beside it on machines with CUDA.
const CUDA_HALF: &str = "libtorch_cuda.so";
/// The driver's library; without it, loading half a gigabyte of kernels gains nothing.
const DRIVER: &str = "libcuda.so.1";

/// Loads CUDA if it can be had; the first call decides, later calls repeat its answer.
///
/// Must come before any other question to torch about CUDA. Programs call it first thing in `main`, unless
/// the CPU is what they were set to use.
pub fn load_cuda() -> &'static CudaState {
    static STATE: OnceLock<CudaState> = OnceLock::new();
    STATE.get_or_init(|| {
        let beside = mapped_library(CPU_HALF).map(|path| path.with_file_name(CUDA_HALF));
        let Some(cuda_half) = beside.filter(|path| path.exists()) else {
            return CudaState::NotInstalled;
        };
        if open_for_good(Path::new(DRIVER)).is_err() {
            return CudaState::NoDriver;
        }
        if let Err(why) = open_for_good(&cuda_half) {
            return CudaState::LoadFailed(why);
        }
        match usize::try_from(tch::Cuda::device_count()) {
            Ok(count) if count > 0 => CudaState::Devices(count),
            _ => CudaState::NoDevice,
        }
    })
}

/// Where the library called `name` was loaded from, by the kernel's own list of this process's mappings.
fn mapped_library(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| {
        let path = &line[line.find('/')?..];
        (Path::new(path).file_name()? == name).then_some(path)
    })?;
    Some(PathBuf::from(path))
}

/// Opens a shared library for the whole process and never closes it; the loader's complaint otherwise.
fn open_for_good(path: &Path) -> Result<(), String> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: `path` is a valid C string. Opening runs the library's initialisers, which is what linking to
    // it would have done, and the handle is never closed, so nothing it registered can dangle.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns null or a C string that stays valid until this thread's next dl call; it is
    // copied here.
    let why = unsafe {
        let why = libc::dlerror();
        if why.is_null() {
            None
        } else {
            Some(CStr::from_ptr(why).to_string_lossy().into_owned())
        }
    };
    Err(why.unwrap_or_else(|| "the loader gave no reason".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_libtorch_is_found_among_the_mappings() {
        let _ = tch::utils::has_openmp();

        let path = mapped_library(CPU_HALF).expect("this test is linked to libtorch");

        assert!(path.is_file(), "{}", path.display());
        assert_eq!(mapped_library("libno_such_library.so"), None);
    }

    #[test]
    fn torch_and_load_cuda_agree_on_whether_there_is_a_device() {
        let state = load_cuda();

        assert_eq!(
            tch::Cuda::is_available(),
            matches!(state, CudaState::Devices(_)),
            "{state}"
        );
        assert_eq!(load_cuda(), state);
    }

    #[test]
    fn a_library_that_cannot_be_opened_says_why() {
        let why = open_for_good(Path::new("libno_such_library.so")).unwrap_err();

        assert!(why.contains("libno_such_library.so"), "{why}");
    }
}
