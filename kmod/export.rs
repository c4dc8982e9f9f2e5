// SPDX-License-Identifier: GPL-2.0-only
//! File handles, for NFS and open_by_handle_at(2): inode number and generation, 64 bits each.

use crate::bindings as c;
use crate::control;
use crate::inode;
use crate::vfs::{blank, code, err_ptr, Dentry, Inode, Table, EIO};
use core::ptr::null_mut;
use core::sync::atomic::Ordering;
use kernel::ffi::c_int;
use vexfs_core::op::{Op, Reply};

/// Handle of an inode.
const ALONE: c_int = 0x91;
/// The same and that of its directory.
const WITH_PARENT: c_int = 0x92;
const INVALID: c_int = 0xff;
/// Words of one of the two.
const WORDS: usize = 4;

pub(crate) static OPERATIONS: Table<c::export_operations> = Table(c::export_operations {
    encode_fh: Some(encode_fh),
    fh_to_dentry: Some(fh_to_dentry),
    fh_to_parent: Some(fh_to_parent),
    get_parent: Some(get_parent),
    commit_metadata: Some(commit_metadata),
    ..blank()
});

fn words(i: Inode) -> [u32; WORDS] {
    let (ino, generation) = (i.ino(), i.ext().generation.load(Ordering::Relaxed));
    [ino as u32, (ino >> 32) as u32, generation as u32, (generation >> 32) as u32]
}

unsafe extern "C" fn encode_fh(i: *mut c::inode, fh: *mut u32, max: *mut c_int, parent: *mut c::inode) -> c_int {
    // SAFETY: the VFS passes inodes of ours and room for `max` words.
    unsafe {
        let i = Inode::new(i);
        let need = if parent.is_null() { WORDS } else { 2 * WORDS };
        let room = usize::try_from(*max).unwrap_or(0);
        *max = need as c_int;
        if room < need || control::is_control(i.ino()) {
            return INVALID;
        }
        core::ptr::copy_nonoverlapping(words(i).as_ptr(), fh, WORDS);
        if parent.is_null() {
            return ALONE;
        }
        core::ptr::copy_nonoverlapping(words(Inode::new(parent)).as_ptr(), fh.add(WORDS), WORDS);
        WITH_PARENT
    }
}

unsafe fn find(s: *mut c::super_block, fid: *mut c::fid, skip: usize) -> *mut c::dentry {
    // SAFETY: the caller has checked that the words are there; the superblock is a mount's.
    unsafe {
        let w = fid.cast::<u32>().add(skip);
        let pair = |at: usize| u64::from(*w.add(at)) | u64::from(*w.add(at + 1)) << 32;
        inode::by_handle(s, pair(0), pair(2))
    }
}

unsafe extern "C" fn fh_to_dentry(s: *mut c::super_block, fid: *mut c::fid, len: c_int, kind: c_int) -> *mut c::dentry {
    if !matches!(kind, ALONE | WITH_PARENT) || len < WORDS as c_int {
        return null_mut();
    }
    // SAFETY: as checked.
    unsafe { find(s, fid, 0) }
}

unsafe extern "C" fn fh_to_parent(s: *mut c::super_block, fid: *mut c::fid, len: c_int, kind: c_int) -> *mut c::dentry {
    if kind != WITH_PARENT || len < 2 * WORDS as c_int {
        return null_mut();
    }
    // SAFETY: as checked.
    unsafe { find(s, fid, WORDS) }
}

unsafe extern "C" fn get_parent(child: *mut c::dentry) -> *mut c::dentry {
    // SAFETY: the VFS passes a positive dentry of a directory.
    unsafe {
        let r = Dentry::new(child).positive().and_then(|dir| {
            let Reply::Ino(ino) = dir.fs().call(Op::Parent { dir: dir.ino() })? else { return Err(EIO) };
            inode::get(dir.sb(), ino)
        });
        match r {
            Ok(i) => c::d_obtain_alias(i.raw()),
            Err(e) => err_ptr(e),
        }
    }
}

/// What an NFS client was told is done must be durable.
unsafe extern "C" fn commit_metadata(i: *mut c::inode) -> c_int {
    // SAFETY: the VFS passes an inode of ours.
    let i = unsafe { Inode::new(i) };
    code(inode::push_times(i).and_then(|()| i.fs().sync()))
}
