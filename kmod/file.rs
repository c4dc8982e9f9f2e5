// SPDX-License-Identifier: GPL-2.0-only
//! Regular files: the operations on an open one. Buffered I/O and mappings are the page cache's (`page`); direct I/O
//! goes through buffers of its own, so that memory which changes under it does no harm to checksums.

use crate::bindings as c;
use crate::page;
use crate::vfs::{blank, code, count, ok, Inode, KResult, Table, EBUSY, EFAULT, EINVAL, EIO, ENOMEM, EOPNOTSUPP};
use crate::{inode, ioctl, xattr};
use alloc::vec::Vec;
use kernel::ffi::c_int;
use vexfs_core::mem;
use vexfs_core::op::{Op, Reply, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE};

/// Bytes of one step of direct I/O.
const DIRECT_STEP: usize = 1 << 20;
/// Extents that are asked for in one go.
const EXTENTS: usize = 256;

pub(crate) static INODE: Table<c::inode_operations> = Table(c::inode_operations {
    getattr: Some(inode::getattr),
    setattr: Some(inode::setattr),
    listxattr: Some(xattr::list),
    get_inode_acl: Some(xattr::get_acl),
    set_acl: Some(xattr::set_acl),
    fiemap: Some(fiemap),
    ..blank()
});

pub(crate) static FILE: Table<c::file_operations> = Table(c::file_operations {
    llseek: Some(llseek),
    read_iter: Some(read_iter),
    write_iter: Some(write_iter),
    splice_read: Some(c::filemap_splice_read),
    splice_write: Some(c::iter_file_splice_write),
    mmap: Some(mmap),
    open: Some(open),
    fsync: Some(fsync),
    fallocate: Some(fallocate),
    unlocked_ioctl: Some(ioctl::ioctl),
    compat_ioctl: Some(ioctl::ioctl),
    ..blank()
});

static MAPPING: Table<c::vm_operations_struct> = Table(c::vm_operations_struct {
    fault: Some(c::filemap_fault),
    map_pages: Some(c::filemap_map_pages),
    page_mkwrite: Some(page::page_mkwrite),
    ..blank()
});

unsafe extern "C" fn open(i: *mut c::inode, f: *mut c::file) -> c_int {
    // SAFETY: the VFS passes an inode of ours and a file that is being opened.
    unsafe {
        if let Err(e) = Inode::new(i).fs().up() {
            return -e;
        }
        (*f).f_mode |= c::VEXFS_FMODE_CAN_ODIRECT;
        c::generic_file_open(i, f)
    }
}

unsafe extern "C" fn mmap(f: *mut c::file, v: *mut c::vm_area_struct) -> c_int {
    // SAFETY: the VFS passes an open file and the area that is being made.
    unsafe {
        c::vexfs_file_accessed(f);
        (*v).vm_ops = MAPPING.get();
    }
    0
}

/// fsync(2), fdatasync(2), for directories too.
pub(crate) unsafe extern "C" fn fsync(f: *mut c::file, start: c::loff_t, end: c::loff_t, data_only: c_int) -> c_int {
    // SAFETY: the VFS passes an open file of ours.
    code(unsafe {
        let i = Inode::new(c::vexfs_file_inode(f));
        let written = ok(c::file_write_and_wait_range(f, start, end));
        let times = if data_only == 0 && i.nlink() > 0 { inode::push_times(i) } else { Ok(()) };
        written.and(times).and_then(|()| i.fs().sync())
    })
}

unsafe extern "C" fn llseek(f: *mut c::file, offset: c::loff_t, whence: c_int) -> c::loff_t {
    let hole = match whence as u32 {
        c::SEEK_DATA => false,
        c::SEEK_HOLE => true,
        // SAFETY: the VFS passes an open file.
        _ => return unsafe { c::generic_file_llseek(f, offset, whence) },
    };
    // SAFETY: as above.
    let i = unsafe { Inode::new(c::vexfs_file_inode(f)) };
    let Ok(from) = u64::try_from(offset) else { return -6 };
    i.lock_shared();
    let r = page::flush(i).and_then(|()| i.fs().call(Op::Seek { ino: i.ino(), offset: from, hole }));
    i.unlock_shared();
    match r {
        // SAFETY: as above.
        Ok(Reply::Offset(at)) => unsafe { c::vfs_setpos(f, at.cast_signed(), i64::MAX) },
        Ok(_) => -c::loff_t::from(EIO),
        Err(e) => -c::loff_t::from(e),
    }
}

unsafe extern "C" fn read_iter(k: *mut c::kiocb, to: *mut c::iov_iter) -> isize {
    // SAFETY: the VFS passes a read of a file of ours.
    unsafe {
        let i = Inode::new(c::vexfs_file_inode((*k).ki_filp));
        if let Err(e) = i.fs().up() {
            return -(e as isize);
        }
        if (*k).ki_flags & c::VEXFS_IOCB_DIRECT == 0 {
            return c::generic_file_read_iter(k, to);
        }
        i.lock_shared();
        let r = read_direct(i, k, to);
        i.unlock_shared();
        c::vexfs_file_accessed((*k).ki_filp);
        count(r)
    }
}

/// Whether position, length and memory of direct I/O are whole sectors.
unsafe fn aligned(i: Inode, pos: u64, iter: *mut c::iov_iter) -> bool {
    // SAFETY: the caller passes a valid iterator; the superblock has its device.
    unsafe {
        let sector = u64::from(c::vexfs_bdev_logical((*i.sb()).s_bdev));
        let all = pos | c::vexfs_iter_count(iter) as u64 | c::iov_iter_alignment(iter) as u64;
        all & (sector - 1) == 0
    }
}

unsafe fn read_direct(i: Inode, k: *mut c::kiocb, to: *mut c::iov_iter) -> KResult<usize> {
    // SAFETY: as for `read_iter`.
    unsafe {
        let mut pos = (*k).ki_pos.cast_unsigned();
        if !aligned(i, pos, to) {
            return Err(EINVAL);
        }
        ok(c::kiocb_write_and_wait(k, c::vexfs_iter_count(to)))?;
        let mut done = 0;
        while c::vexfs_iter_count(to) > 0 && pos < i.size() {
            let left = usize::try_from(i.size() - pos).unwrap_or(usize::MAX);
            let len = c::vexfs_iter_count(to).min(DIRECT_STEP).min(left);
            let mut b = match i.fs().bytes(Op::Read { ino: i.ino(), offset: pos, len }) {
                Ok(b) => b,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            // A hole at the end that only the size tells of.
            mem::resize(&mut b, len, 0).map_err(|_| ENOMEM)?;
            let n = c::vexfs_copy_to_iter(b.as_ptr().cast(), len, to);
            done += n;
            pos += n as u64;
            if n < len {
                if done == 0 {
                    return Err(EFAULT);
                }
                break;
            }
        }
        (*k).ki_pos = pos.cast_signed();
        Ok(done)
    }
}

unsafe extern "C" fn write_iter(k: *mut c::kiocb, from: *mut c::iov_iter) -> isize {
    // SAFETY: the VFS passes a write to a file of ours.
    unsafe {
        let i = Inode::new(c::vexfs_file_inode((*k).ki_filp));
        if i.fs().is_shut() {
            return -(EIO as isize);
        }
        i.lock();
        let r = checked_write(i, k, from);
        i.unlock();
        c::vexfs_write_sync(k, count(r))
    }
}

unsafe fn checked_write(i: Inode, k: *mut c::kiocb, from: *mut c::iov_iter) -> KResult<usize> {
    // SAFETY: as for `write_iter`; the inode is locked.
    unsafe {
        let n = c::generic_write_checks(k, from);
        if n <= 0 {
            return if n == 0 { Ok(0) } else { Err(-n as i32) };
        }
        let file = (*k).ki_filp;
        let direct = (*k).ki_flags & c::VEXFS_IOCB_DIRECT != 0;
        let pos = (*k).ki_pos.cast_unsigned();
        if direct && !aligned(i, pos, from) {
            return Err(EINVAL);
        }
        ok(c::file_remove_privs(file))?;
        ok(c::file_update_time(file))?;
        let done = if direct { write_direct(i, k, from)? } else { page::write(i, pos, from)? };
        (*k).ki_pos = pos.saturating_add(done as u64).cast_signed();
        Ok(done)
    }
}

unsafe fn write_direct(i: Inode, k: *mut c::kiocb, from: *mut c::iov_iter) -> KResult<usize> {
    // SAFETY: as for `checked_write`.
    unsafe {
        let start = (*k).ki_pos.cast_unsigned();
        let old = i.size();
        if start.saturating_add(c::vexfs_iter_count(from) as u64) > old {
            page::zero_tail(i, old);
        }
        // Pages that cannot be taken out of the cache (EBUSY) are written through it.
        match ok(c::kiocb_invalidate_pages(k, c::vexfs_iter_count(from))) {
            Err(EBUSY) => {
                let n = page::write(i, start, from)?;
                page::flush(i)?;
                return Ok(n);
            }
            other => other?,
        }
        {
            let mut done = 0usize;
            while c::vexfs_iter_count(from) > 0 {
                let offset = start.saturating_add(done as u64);
                match direct_step(i, offset, from) {
                    Ok(n) => done += n,
                    Err(_) if done > 0 => break,
                    Err(e) => return Err(e),
                }
                let end = start.saturating_add(done as u64);
                if end > i.size() {
                    i.set_size(end);
                }
            }
            if done > 0 {
                // What a page fault of this very write may have read in is old.
                let last = start.saturating_add(done as u64 - 1) / 4096;
                c::invalidate_inode_pages2_range(i.mapping(), (start / 4096) as _, last as _);
            }
            Ok(done)
        }
    }
}

unsafe fn direct_step(i: Inode, offset: u64, from: *mut c::iov_iter) -> KResult<usize> {
    // SAFETY: the caller passes a valid iterator.
    unsafe {
        let len = c::vexfs_iter_count(from).min(DIRECT_STEP);
        let mut data: Vec<u8> = mem::filled(len, 0).map_err(|_| ENOMEM)?;
        let got = c::vexfs_copy_from_iter(data.as_mut_ptr().cast(), len, from);
        if got == 0 {
            return Err(EFAULT);
        }
        data.truncate(got);
        let [_, mtime, ctime] = i.times();
        let times = Some(vexfs_core::op::WriteTimes { mtime, ctime });
        let op = Op::Write { ino: i.ino(), offset, data, kill_suid: false, times };
        // Data that waits in the page cache was promised its blocks before.
        let blocks = page::reserve_direct(i, offset, got)?;
        let r = i.fs().change(None, op);
        i.fs().host().unreserve(blocks);
        match r? {
            Reply::Written(n) => {
                if n < got {
                    c::iov_iter_revert(from, got - n);
                }
                i.ext().set_known_changes(mtime, ctime);
                Ok(n)
            }
            _ => Err(EIO),
        }
    }
}

unsafe extern "C" fn fallocate(f: *mut c::file, mode: c_int, offset: c::loff_t, len: c::loff_t) -> kernel::ffi::c_long {
    // SAFETY: the VFS passes an open file of ours and a range within the limits.
    let i = unsafe { Inode::new(c::vexfs_file_inode(f)) };
    let mode = mode as u32;
    let known = [
        0,
        FALLOC_KEEP_SIZE,
        FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
        FALLOC_ZERO_RANGE,
        FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
    ];
    if !known.contains(&mode) {
        return -(EOPNOTSUPP as kernel::ffi::c_long);
    }
    i.lock();
    // SAFETY: as above; locked.
    let r = unsafe { allocate(i, f, mode, offset.cast_unsigned(), len.cast_unsigned()) };
    i.unlock();
    match r {
        Ok(()) => 0,
        Err(e) => -(e as kernel::ffi::c_long),
    }
}

unsafe fn allocate(i: Inode, f: *mut c::file, mode: u32, offset: u64, len: u64) -> KResult<()> {
    let end = offset.saturating_add(len);
    let keep = mode & FALLOC_KEEP_SIZE != 0;
    // SAFETY: a locked inode and an open file of it.
    unsafe {
        if !keep && end > i.size() {
            ok(c::inode_newsize_ok(i.raw(), end.cast_signed()))?;
        }
        c::inode_dio_wait(i.raw());
        ok(c::file_modified(f))?;
    }
    i.invalidate_lock();
    let r = page::flush(i).and_then(|()| {
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 {
            // SAFETY: a locked inode.
            unsafe { c::truncate_pagecache_range(i.raw(), offset.cast_signed(), end.cast_signed() - 1) };
        }
        if !keep && end > i.size() {
            page::zero_tail(i, i.size());
        }
        i.fs().change(None, Op::Fallocate { ino: i.ino(), mode, offset, len })?;
        if !keep && end > i.size() {
            i.set_size(end);
        }
        // The core has put its own time on it.
        i.ext().set_known(Default::default());
        Ok(())
    });
    i.invalidate_unlock();
    // SAFETY: a live inode.
    unsafe { c::vexfs_mark_dirty_sync(i.raw()) };
    r
}

unsafe extern "C" fn fiemap(p: *mut c::inode, info: *mut c::fiemap_extent_info, start: u64, len: u64) -> c_int {
    // SAFETY: the VFS passes an inode of ours and where the extents go.
    code(unsafe {
        let i = Inode::new(p);
        let mut len = len;
        // Data that waits to be written has no place yet: it gets one.
        ok(c::fiemap_prep(p, info, start, &mut len, 0)).and_then(|()| page::flush(i)).and_then(|()| {
            let end = start.saturating_add(len);
            let mut at = start;
            while at < end {
                // Up to the end of the file, to know which extent is the last one.
                let op = Op::Extents { ino: i.ino(), offset: at, len: u64::MAX - at, max: EXTENTS };
                let Reply::Extents(list) = i.fs().call(op)? else { return Err(EIO) };
                let full = list.len() >= EXTENTS;
                for (n, e) in list.iter().enumerate() {
                    if e.logical >= end {
                        return Ok(());
                    }
                    let mut flags = if e.unwritten { c::FIEMAP_EXTENT_UNWRITTEN } else { 0 };
                    if !full && n + 1 == list.len() {
                        flags |= c::FIEMAP_EXTENT_LAST;
                    }
                    let r = c::fiemap_fill_next_extent(info, e.logical, e.physical, e.len, flags);
                    if r != 0 {
                        return ok(r);
                    }
                    at = e.logical.saturating_add(e.len);
                }
                if !full {
                    break;
                }
            }
            Ok(())
        })
    })
}
