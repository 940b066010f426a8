//! Builds the kernels with the host's C++ compiler and runs them there.
//!
//! The library is built when the test runs and not by a build script: a build script cannot tell whether it
//! builds a test, and nobody who builds the server should need a C++ compiler for it. It also lets the same
//! test binary run kernels that are built with the address sanitizer (`scripts/sanitize-kernels`).

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use libloading::Library;
use unmask::kernels::{Argument, Launch, LaunchError, Machine};

/// The kernels on this machine's processor: a block's threads take turns at barriers.
pub struct Host {
    threads: u32,
    reversed: bool,
}

#[repr(C)]
struct HostLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    reversed: u32,
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    // Its file may go once it is loaded.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let library = build(folder.path());
    // SAFETY: the library has no constructors that do more than initialise its own variables.
    unsafe { Library::new(&library) }.unwrap()
});

fn build(folder: &Path) -> PathBuf {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let library = folder.join("kernels.so");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let flags = std::env::var("UNMASK_KERNEL_FLAGS").unwrap_or_default();
    let mut command = Command::new(&compiler);
    command
        .args(["-std=c++17", "-O2", "-g1", "-Wall", "-Wextra", "-Werror"])
        .args([
            "-Wno-unknown-pragmas",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
        ])
        .args(["-fPIC", "-shared"])
        .args(flags.split_whitespace())
        .arg(kernels.join("host/library.cpp"))
        .arg("-o")
        .arg(&library);
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "the kernels' tests need a C++17 compiler; {} does not start ({error}): install one, or name it \
             in CXX",
            compiler.display()
        )
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
    library
}

impl Host {
    pub fn new(threads: u32, reversed: bool) -> Self {
        Self { threads, reversed }
    }
}

impl Machine for Host {
    fn name(&self) -> String {
        "the host's shim".into()
    }

    fn row_threads(&self) -> u32 {
        self.threads
    }

    unsafe fn launch(
        &mut self,
        launch: &Launch,
        arguments: &mut [Argument],
    ) -> Result<(), LaunchError> {
        let symbol = format!("host_{}", launch.kernel);
        // SAFETY: the shim exports its kernels with this signature.
        let kernel = unsafe {
            LIBRARY.get::<unsafe extern "C" fn(*const HostLaunch, *mut *mut c_void)>(&symbol)
        };
        let kernel = kernel.map_err(|error| LaunchError {
            kernel: launch.kernel,
            reason: error.to_string(),
        })?;
        // Addresses as a kernel reads them, without the lengths that stand beside them here.
        let tables: Vec<Vec<u64>> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Addresses(all) => all.iter().map(|bytes| bytes.as_ptr() as u64).collect(),
                _ => Vec::new(),
            })
            .collect();
        // Each argument as a kernel takes it, a pointer or a number, in a place of its own.
        let mut places: Vec<u64> = arguments
            .iter_mut()
            .zip(&tables)
            .map(|(argument, table)| match argument {
                Argument::In(bytes) => bytes.as_ptr() as u64,
                Argument::Addresses(_) => table.as_ptr() as u64,
                Argument::Out(bytes) => bytes.as_mut_ptr() as u64,
                Argument::U32(number) => u64::from(*number),
                Argument::U64(number) => *number,
                Argument::F32(number) => u64::from(number.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = places
            .iter_mut()
            .map(|place| std::ptr::from_mut(place).cast())
            .collect();
        let host = HostLaunch {
            grid: launch.grid,
            block: launch.block,
            reversed: u32::from(self.reversed),
        };
        // SAFETY: the caller passes the kernel's parameters in their order, with memory as large as it reads
        // and writes; numbers stand at the start of their places on a little-endian machine.
        unsafe { kernel(&host, pointers.as_mut_ptr()) };
        Ok(())
    }
}
