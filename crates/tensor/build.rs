//! Compiles the bridge to autograd (`src/gradient.cpp`) against the libtorch that torch-sys found.

use std::env::var_os;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/gradient.cpp");
    for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_USE_PYTORCH", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let root = headers();
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // libtorch's headers are not free of warnings.
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .define("GLOG_USE_GLOG_EXPORT", None)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .file("src/gradient.cpp")
        .compile("seedpo_gradient");
}

/// The folder with libtorch's `include`, where torch-sys finds it: named, or beside the libraries.
fn headers() -> PathBuf {
    let named = || var_os("LIBTORCH_INCLUDE").or_else(|| var_os("LIBTORCH")).map(PathBuf::from);
    let named = if var_os("LIBTORCH_USE_PYTORCH").is_some() { None } else { named() };
    named.unwrap_or_else(|| {
        let lib = var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the folder of libtorch's libraries");
        PathBuf::from(lib).join("..")
    })
}
