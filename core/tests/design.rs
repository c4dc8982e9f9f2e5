// SPDX-License-Identifier: GPL-2.0-only
//! DESIGN.md holds the byte tables of the format. They are generated from the declarations in `core/src/format`; this
//! test fails when they differ, and writes them with `VEXFS_WRITE_DESIGN=1 cargo test -p vexfs-core --test design`.

use std::fmt::Write;
use vexfs_core::format::TABLES;

const START: &str = "<!-- format tables: generated, see core/tests/design.rs -->\n";
const END: &str = "<!-- end of format tables -->\n";

fn tables() -> String {
    let mut s = String::new();
    for t in TABLES {
        writeln!(s, "\n### {} ({} bytes)\n\n{}\n", t.name, t.size, t.doc.trim()).unwrap();
        writeln!(s, "| offset | size | field | type | meaning |\n|---:|---:|---|---|---|").unwrap();
        for f in t.fields {
            let doc = f.doc.replace('|', "\\|");
            writeln!(s, "| {} | {} | {} | `{}` | {} |", f.offset, f.size, f.name, f.ty, doc).unwrap();
        }
    }
    s.push('\n');
    s
}

#[test]
fn design_has_the_tables_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../DESIGN.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(START).expect("DESIGN.md has no mark for the tables");
    let (old, tail) = rest.split_once(END).expect("DESIGN.md has no end mark for the tables");
    let new = tables();
    if std::env::var_os("VEXFS_WRITE_DESIGN").is_some() {
        std::fs::write(path, format!("{head}{START}{new}{END}{tail}")).unwrap();
    } else {
        assert!(
            old == new,
            "the tables in DESIGN.md are out of date: VEXFS_WRITE_DESIGN=1 cargo test -p vexfs-core --test design"
        );
    }
}
