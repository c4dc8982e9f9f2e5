// SPDX-License-Identifier: GPL-2.0-only
//! One program under three names: `vexfs`, and through links `mkfs.vexfs` and `fsck.vexfs` (cargo builds no
//! program with a dot in its name; `make` makes the links). `vexfs mkfs` and `vexfs fsck` are the same.

use clap::Parser;
use std::path::Path;
use std::process::ExitCode;
use vexfs_cli::args::{Command, Fsck, Mkfs, Vexfs};
use vexfs_cli::{cmd, fsck, mkfs};

fn main() -> ExitCode {
    let program = std::env::args_os().next();
    let program = program.as_deref().map(Path::new).and_then(Path::file_name).and_then(|n| n.to_str());
    match program {
        Some("mkfs.vexfs") => run_mkfs(&Mkfs::parse()),
        Some("fsck.vexfs") => match Fsck::try_parse() {
            Ok(args) => fsck::run(&args),
            Err(e) => fsck::usage(&e),
        },
        _ => match Vexfs::parse().command {
            Command::Mkfs(args) => run_mkfs(&args),
            Command::Fsck(args) => fsck::run(&args),
            command => end("vexfs", cmd::run(&command)),
        },
    }
}

fn run_mkfs(args: &Mkfs) -> ExitCode {
    end("mkfs.vexfs", mkfs::run(args))
}

/// Says on stderr why a program failed, gives its exit code.
fn end(program: &str, result: vexfs_cli::fail::Done) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{program}: {e}");
            ExitCode::from(e.code)
        }
    }
}
