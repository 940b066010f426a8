//! With the feature `cuda`: compiles the kernels to PTX, which the binary embeds.
//!
//! PTX of one compute capability runs on every later card, whose driver compiles it when it is loaded. The earliest is
//! 8.0, which has the instructions of kernels/tensor_core.cuh.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: [&str; 8] = [
    "attention_merge",
    "categorical",
    "corrupt",
    "experts",
    "layers",
    "long_attention",
    "posterior",
    "ragged_attention",
];

/// 8.0: asynchronous copies, and products in bf16 on tensor cores.
const LEAST_CAPABILITY: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(error) = compile() {
        println!("cargo::error={error}");
    }
}

fn compile() -> Result<(), String> {
    let nvcc = nvcc();
    println!("cargo::rustc-env=UNMASK_CUDA_VERSION={}", version(&nvcc)?);
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    if capability
        .parse()
        .is_ok_and(|number: u32| number < LEAST_CAPABILITY)
    {
        return Err(format!(
            "CUDA_COMPUTE_CAP is {capability}; allowed: {LEAST_CAPABILITY} and later"
        ));
    }
    let folder = variable("CARGO_MANIFEST_DIR")?.join("kernels");
    let out = variable("OUT_DIR")?;
    for kernel in KERNELS {
        let status = Command::new(&nvcc)
            .args(["--ptx", "-O3", "-std=c++17", "-Werror", "all-warnings"])
            .arg(format!("-arch=compute_{capability}"))
            .arg(folder.join(format!("{kernel}.cu")))
            .arg("-o")
            .arg(out.join(format!("{kernel}.ptx")))
            .status()
            .map_err(|error| does_not_start(&nvcc, error))?;
        if !status.success() {
            return Err(format!(
                "nvcc cannot compile kernels/{kernel}.cu for compute capability {capability}"
            ));
        }
    }
    Ok(())
}

/// The version of CUDA that is compiled with, as drivers tell theirs: 13.1 is 13010.
fn version(nvcc: &Path) -> Result<u32, String> {
    let output = Command::new(nvcc)
        .arg("--version")
        .output()
        .map_err(|error| does_not_start(nvcc, error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_once("release ")
        .and_then(|(_, rest)| rest.split(',').next()?.split_once('.'))
        .and_then(|(major, minor)| {
            Some(major.parse::<u32>().ok()? * 1000 + minor.parse::<u32>().ok()? * 10)
        })
        .ok_or_else(|| {
            format!(
                "{} --version names no release, but says: {text}",
                nvcc.display()
            )
        })
}

fn does_not_start(nvcc: &Path, error: std::io::Error) -> String {
    format!(
        "the feature `cuda` needs nvcc, but {} does not start ({error}); put it on PATH or name \
         it in NVCC or CUDA_HOME, or run: eval \"$(scripts/cuda-toolchain)\"",
        nvcc.display()
    )
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].map(env::var_os);
    let installed = homes.into_iter().flatten().map(|home| {
        let home = PathBuf::from(home);
        home.join("bin/nvcc")
    });
    installed
        .chain([Path::new("/usr/local/cuda/bin/nvcc").to_owned()])
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("cargo does not set {name}"))
}
