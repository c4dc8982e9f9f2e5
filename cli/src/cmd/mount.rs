// SPDX-License-Identifier: GPL-2.0-only
//! mount and umount.

use crate::args::{Mount, Umount};
use crate::fail::{code, Done, Failure};
use vexfs_fuse::{MountConfig, MountOptions};

/// `vexfs mount`.
pub fn mount(a: &Mount) -> Done {
    let mut options = MountOptions::default();
    for text in &a.options {
        options.parse(text).map_err(|e| Failure::new(code::USAGE, e.to_string()))?;
    }
    let config = MountConfig { source: a.target.clone(), mountpoint: a.dir.clone(), options, foreground: a.foreground };
    vexfs_fuse::mount(&config).map_err(|e| failure(&e))
}

/// `vexfs umount`.
pub fn umount(a: &Umount) -> Done {
    vexfs_fuse::unmount(&a.dir).map_err(|e| failure(&e))
}

fn failure(e: &vexfs_fuse::MountError) -> Failure {
    Failure::new(code::from_errno(e.errno()), e.to_string())
}
