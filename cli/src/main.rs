// SPDX-License-Identifier: GPL-2.0-only
//! One program under three names: `vexfs`, and through links `mkfs.vexfs` and `fsck.vexfs` (cargo builds no
//! program with a dot in its name; `make` makes the links). `vexfs mkfs` and `vexfs fsck` are the same.

use clap::Parser;
use std::path::Path;
use std::process::ExitCode;
use vexfs_cli::args::{Command, Fsck, Mkfs, Vexfs};
use vexfs_cli::fail::{self, code};
use vexfs_cli::{cmd, fsck, mkfs};

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next();
    let program = program.as_deref().map(Path::new).and_then(Path::file_name).and_then(|n| n.to_str());
    let result = match program {
        Some("mkfs.vexfs") => return run_mkfs(Mkfs::try_parse()),
        Some("fsck.vexfs") => return run_fsck("fsck.vexfs", Fsck::try_parse()),
        _ => Vexfs::try_parse(),
    };
    match result.map(|v| v.command) {
        Ok(Command::Mkfs(args)) => run_mkfs(Ok(args)),
        Ok(Command::Fsck(args)) => run_fsck("vexfs fsck", Ok(args)),
        Ok(command) => end("vexfs", cmd::run(&command)),
        Err(e) if words.next().is_some_and(|w| w == "fsck") => run_fsck("vexfs fsck", Err(e)),
        Err(e) => fail::usage("vexfs", &e, code::USAGE),
    }
}

fn run_mkfs(args: Result<Mkfs, clap::Error>) -> ExitCode {
    match args {
        Ok(args) => end("mkfs.vexfs", mkfs::run(&args)),
        Err(e) => fail::usage("mkfs.vexfs", &e, code::USAGE),
    }
}

fn run_fsck(program: &str, args: Result<Fsck, clap::Error>) -> ExitCode {
    match args {
        Ok(args) => fsck::run(&args),
        Err(e) => fsck::usage(program, &e),
    }
}

/// Says on stderr why a program failed, gives its exit code.
fn end(program: &str, result: fail::Done) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{program}: {e}");
            ExitCode::from(e.code)
        }
    }
}
