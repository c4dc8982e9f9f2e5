// SPDX-License-Identifier: MIT OR Apache-2.0
//! The C header says the same as the Rust definition: every structure, field, size and number.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use vexfs_client::wire;

fn snake(name: &str) -> String {
    let mut s = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            s.push('_');
        }
        s.push(c.to_ascii_lowercase());
    }
    s
}

/// Names and values of the constants in the Rust source, with what C calls them.
fn constants(source: &str) -> Vec<(String, String)> {
    let mut module = String::new();
    let mut all = Vec::new();
    for line in source.lines() {
        if let Some(m) = line.strip_prefix("pub mod ") {
            module = match m.trim_end_matches(" {") {
                "attr_type" => "ATTR".into(),
                m => m.trim_end_matches("_flags").to_uppercase(),
            };
        } else if line == "}" {
            module.clear();
        } else if let Some(c) = line.trim_start().strip_prefix("pub const ").filter(|c| !c.starts_with("fn ")) {
            let Some((name, rest)) = c.split_once(": ") else { continue };
            let Some((ty, value)) = rest.split_once(" = ") else { continue };
            if name == "ALL" || ty.starts_with("&[") || name == "SIZE" {
                continue;
            }
            let value = value.trim_end_matches(';').replace('_', "");
            let value = match ty {
                "&str" => rest.split('"').nth(1).map(|s| format!("\"{s}\"")).unwrap(),
                _ if value.ends_with("::MAX") => match ty {
                    "u32" => u32::MAX.to_string(),
                    _ => format!("{}ULL", u64::MAX),
                },
                _ => match value.split_once(" << ") {
                    Some((a, b)) => format!("({a}ULL << {b})"),
                    None => value,
                },
            };
            let c_name = match (module.as_str(), name) {
                ("", "VERSION") => "VEXFS_PROTOCOL_VERSION".into(),
                ("", n) => format!("VEXFS_{n}"),
                (m, n) => format!("VEXFS_{m}_{n}"),
            };
            all.push((c_name, value));
        }
    }
    all
}

#[test]
fn header_and_rust_agree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("../core/src/proto/wire.rs")).unwrap();
    let header = std::fs::read_to_string(root.join("include/vexfs.h")).unwrap();
    let mut c = String::from("#include <stddef.h>\n#include <string.h>\n#include \"vexfs.h\"\n");
    for (name, size, fields) in wire::STRUCTS {
        let s = format!("struct vexfs_{}", snake(name));
        writeln!(c, "_Static_assert(sizeof({s}) == {size}, \"{s}\");").unwrap();
        for (f, offset, size) in *fields {
            writeln!(c, "_Static_assert(offsetof({s}, {f}) == {offset}, \"{s}.{f}\");").unwrap();
            writeln!(c, "_Static_assert(sizeof((({s} *)0)->{f}) == {size}, \"{s}.{f}\");").unwrap();
        }
        assert_eq!(header.matches(&format!("{s} {{")).count(), 1, "{s}");
    }
    let constants = constants(&source);
    assert!(constants.len() > 60, "{}", constants.len());
    let mut main = String::from("int main(void) { return 0");
    for (name, value) in &constants {
        if value.starts_with('"') {
            write!(main, "\n | strcmp({name}, {value})").unwrap();
        } else {
            writeln!(c, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
        }
    }
    for len in [0, 77, wire::IOCTL_MAX] {
        writeln!(c, "_Static_assert(VEXFS_IOCTL_REQUEST({len}) == {}u, \"ioctl\");", wire::ioctl_request(len)).unwrap();
    }
    main.push_str("; }\n");
    c.push_str(&main);
    // Nothing in the header that Rust does not have.
    let structs = header.lines().filter(|l| l.starts_with("struct ") && l.ends_with('{')).count();
    assert_eq!(structs, wire::STRUCTS.len());
    let defines = header.lines().filter(|l| l.starts_with("#define VEXFS_") && *l != "#define VEXFS_H");
    let (macros, plain): (Vec<_>, Vec<_>) = defines.partition(|l| l.contains("(len)"));
    assert_eq!((plain.len(), macros.len()), (constants.len(), 1));

    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (file, program) = (dir.join("header.c"), dir.join("header"));
    std::fs::write(&file, c).unwrap();
    let out = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("include"))
        .arg(&file)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("a C compiler (cc)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(Command::new(&program).status().unwrap().success());
}
