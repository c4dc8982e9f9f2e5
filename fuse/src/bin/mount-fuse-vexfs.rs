// SPDX-License-Identifier: GPL-2.0-only
//! The mount helper, to be installed as `/sbin/mount.fuse.vexfs`: mount(8) runs it for `mount -t fuse.vexfs SOURCE DIR` and for such lines of fstab.

use std::process::ExitCode;
use vexfs_fuse::{mount, MountConfig, MountOptions};

const USAGE: &str = "usage: mount.fuse.vexfs SOURCE DIR [-o OPTIONS] [--foreground]
Mounts the VexFS volume in the image file or block device SOURCE on the directory DIR.
mount(8) runs this program; people type: vexfs mount SOURCE DIR";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        // Exit codes of mount(8): 1 usage, 32 the mount failed.
        Err(Failure::Usage(e)) => {
            eprintln!("mount.fuse.vexfs: {e}\n{USAGE}");
            ExitCode::from(1)
        }
        Err(Failure::Mount(e)) => {
            eprintln!("mount.fuse.vexfs: {e}");
            ExitCode::from(32)
        }
    }
}

enum Failure {
    Usage(String),
    Mount(String),
}

fn run(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<(), Failure> {
    let usage = |e: &str| Failure::Usage(e.to_string());
    let mut places = Vec::new();
    // mount(8) passes `nodev` and `nosuid` on, but not their contraries, which are its defaults.
    let mut options = MountOptions { dev: true, suid: true, ..MountOptions::default() };
    let mut foreground = false;
    let mut fake = false;
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-h" | "--help") => {
                println!("{USAGE}");
                return Ok(());
            }
            Some("--foreground") => foreground = true,
            Some("-o") => {
                let text = args.next().ok_or_else(|| usage("-o needs options"))?;
                let text = text.to_str().ok_or_else(|| usage("options are not UTF-8"))?;
                options.parse(text).map_err(|e| Failure::Usage(e.to_string()))?;
            }
            // What mount(8) passes on: the type and the namespace with a value, s n v without; f: do all but mount.
            Some("-t" | "-N") => drop(args.next()),
            Some(flags)
                if flags.starts_with('-') && flags.len() > 1 && flags[1..].chars().all(|c| "sfnv".contains(c)) =>
            {
                fake |= flags.contains('f');
            }
            Some(other) if other.starts_with('-') && other.len() > 1 => {
                return Err(Failure::Usage(format!("{other}: not known")))
            }
            _ => places.push(arg),
        }
    }
    let [source, mountpoint] =
        <[_; 2]>::try_from(places).map_err(|_| usage("give a source and a directory"))?.map(std::path::PathBuf::from);
    if fake {
        return Ok(());
    }
    mount(&MountConfig { source, mountpoint, options, foreground }).map_err(|e| Failure::Mount(e.to_string()))
}
