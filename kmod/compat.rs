// SPDX-License-Identifier: GPL-2.0-only
//! What differs between kernel versions, Rust side (compat.h has the C side): tables of functions whose signatures have
//! changed. Written for 6.12, the oldest that is supported.

use crate::bindings as c;
use crate::dir;

/// mkdir(2). From 6.15 on it gives back a dentry.
pub(crate) unsafe extern "C" fn mkdir(
    _idmap: *mut c::mnt_idmap,
    dir: *mut c::inode,
    dentry: *mut c::dentry,
    mode: c::umode_t,
) -> kernel::ffi::c_int {
    // SAFETY: the VFS passes a locked directory and a negative dentry in it.
    unsafe { dir::mkdir(dir, dentry, mode) }
}
