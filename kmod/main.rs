// SPDX-License-Identifier: GPL-2.0-only
//! The kernel driver of VexFS: runs the core on a block device. This module registers the file system type and
//! owns what lives as long as the module: the inode cache and the choice of processor-specific code.
//!
//! `host` drives the core, `bio` carries out its I/O; `sb` and `mount` are superblocks and mounting; `inode`, `dir`,
//! `file`, `page`, `xattr` are the operations of the VFS; `control` is the file `.vexfs`; `env` is what the core
//! needs of the processor; `sync` wraps locks, `vfs` the structures of the kernel; `compat` has what differs
//! between versions of the kernel.

#![allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]

#[allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    clippy::all,
    unused,
    unreachable_pub,
    improper_ctypes,
    missing_docs,
    unsafe_op_in_unsafe_fn,
    unnecessary_transmutes
)]
mod bindings {
    use kernel::ffi;
    include!("bindings.rs");
}

mod bio;
mod compat;
mod control;
mod dir;
mod env;
mod export;
mod file;
mod host;
mod inode;
mod ioctl;
mod mount;
mod page;
mod sb;
mod sync;
mod sysfs;
mod vfs;
mod xattr;

use kernel::prelude::*;

module! {
    type: Vexfs,
    name: "vexfs",
    author: "The VexFS authors",
    description: "VexFS: a filesystem with vector search",
    license: "GPL",
}

struct Vexfs;

impl kernel::Module for Vexfs {
    fn init(_module: &'static kernel::ThisModule) -> Result<Self> {
        env::init();
        let fail = |e: i32| kernel::error::Error::from_errno(-e);
        inode::make_cache().map_err(fail)?;
        if let Err(e) = sysfs::make_root() {
            inode::drop_cache();
            return Err(fail(e));
        }
        if let Err(e) = mount::register() {
            sysfs::drop_root();
            inode::drop_cache();
            return Err(fail(e));
        }
        Ok(Vexfs)
    }
}

impl Drop for Vexfs {
    fn drop(&mut self) {
        mount::unregister();
        sysfs::drop_root();
        inode::drop_cache();
        let left = env::allocated();
        if left != 0 {
            pr_warn!("{} bytes were not given back\n", left);
        }
    }
}
