// SPDX-License-Identifier: GPL-2.0-only
//! ioctls: FITRIM and FS_IOC_SHUTDOWN.

use crate::bindings as c;
use crate::sb::Fs;
use crate::vfs::{ok, KResult, EFAULT, EINVAL, EIO, ENOTTY, EOPNOTSUPP, EPERM};
use kernel::ffi::{c_int, c_long, c_uint, c_ulong};
use kernel::prelude::*;
use vexfs_core::op::{Op, Reply};

/// Bytes of a block.
const BLOCK: u64 = 4096;
const CAP_SYS_ADMIN: c_int = 21;
/// Write everything out first.
const SHUT_FULL: u32 = 0;
/// Write the log out first.
const SHUT_LOG: u32 = 1;
/// Stop as it is.
const SHUT_NOW: u32 = 2;

pub(crate) unsafe extern "C" fn ioctl(f: *mut c::file, cmd: c_uint, arg: c_ulong) -> c_long {
    // SAFETY: the VFS passes an open file of ours; `arg` is only used with the functions that check it.
    let r = unsafe {
        let fs = Fs::of(c::vexfs_file_sb(f));
        match cmd {
            c::VEXFS_FITRIM => trim(fs, f, arg),
            c::VEXFS_IOC_SHUTDOWN => shut(fs, arg),
            _ => Err(ENOTTY),
        }
    };
    match r {
        Ok(()) => 0,
        Err(e) => -(e as c_long),
    }
}

unsafe fn may() -> KResult<()> {
    // SAFETY: asks about the current task.
    if unsafe { c::capable(CAP_SYS_ADMIN) } {
        Ok(())
    } else {
        Err(EPERM)
    }
}

unsafe fn trim(fs: &Fs, f: *mut c::file, arg: c_ulong) -> KResult<()> {
    // SAFETY: as for `ioctl`.
    unsafe {
        may()?;
        if !c::vexfs_bdev_discard((*fs.sb()).s_bdev) {
            return Err(EOPNOTSUPP);
        }
        let mut range = c::fstrim_range::default();
        let size = core::mem::size_of::<c::fstrim_range>();
        if !c::vexfs_copy_from_user(core::ptr::from_mut(&mut range).cast(), arg as *const _, size) {
            return Err(EFAULT);
        }
        if range.start >= fs.statfs()?.blocks.saturating_mul(BLOCK) || range.len < BLOCK {
            return Err(EINVAL);
        }
        let op = Op::Discard { offset: range.start, len: range.len, min: range.minlen };
        // Not on a read-only mount, and not while it is frozen.
        ok(c::mnt_want_write_file(f))?;
        let r = fs.change(None, op);
        c::mnt_drop_write_file(f);
        let Reply::Offset(done) = r? else { return Err(EIO) };
        range.len = done;
        if !c::vexfs_copy_to_user(arg as *mut _, core::ptr::from_ref(&range).cast(), size) {
            return Err(EFAULT);
        }
        Ok(())
    }
}

unsafe fn shut(fs: &Fs, arg: c_ulong) -> KResult<()> {
    // SAFETY: as for `ioctl`.
    unsafe {
        may()?;
        let mut how = 0u32;
        if !c::vexfs_copy_from_user(core::ptr::from_mut(&mut how).cast(), arg as *const _, 4) {
            return Err(EFAULT);
        }
        if fs.is_shut() {
            return Ok(());
        }
        match how {
            SHUT_FULL => {
                c::vexfs_sync_inodes(fs.sb());
                fs.sync()?;
            }
            SHUT_LOG => fs.sync()?,
            SHUT_NOW => {}
            _ => return Err(EINVAL),
        }
        pr_notice!("{}: shut down on request\n", fs.name());
        fs.shut();
        Ok(())
    }
}
