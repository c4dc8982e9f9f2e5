// SPDX-License-Identifier: GPL-2.0-only
//! Says whether the compiler has the AVX-512 intrinsics, which are stable since 1.89 (`vexfs_avx512`). A build
//! without this script leaves them out.

use std::process::Command;

/// The minor version of `rustc 1.MINOR…`.
fn minor() -> Option<u32> {
    let rustc = std::env::var_os("RUSTC")?;
    let out = Command::new(rustc).arg("--version").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(vexfs_avx512)");
    if minor().is_some_and(|m| m >= 89) {
        println!("cargo:rustc-cfg=vexfs_avx512");
    }
}
