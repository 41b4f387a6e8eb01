//! Compiles the bridge to autograd (`src/gradient.cpp`) against the libtorch that torch-sys found.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/gradient.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    // torch-sys says where libtorch's libraries are; its headers are beside them, unless named.
    let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's library folder");
    let beside = PathBuf::from(lib).join("..");
    let root = std::env::var_os("LIBTORCH_INCLUDE").map_or(beside, PathBuf::from);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // libtorch's headers are not free of warnings.
        .warnings(false)
        .flag_if_supported("-Wno-deprecated-declarations")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .file("src/gradient.cpp")
        .compile("seedpo_gradient");
}
