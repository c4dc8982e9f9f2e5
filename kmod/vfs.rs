// SPDX-License-Identifier: GPL-2.0-only
//! The kernel's structures as Rust sees them: thin handles with the few accessors that the module needs. A handle
//! is made where the kernel passes a pointer (that is where its validity is argued) and is used no longer than
//! that pointer may be; so its methods are safe to call.

use crate::bindings as c;
use crate::sb::Fs;
use crate::sync::Opaque;
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use kernel::ffi::{c_char, c_int};
use vexfs_core::op::{Attr, Time};
use vexfs_core::Error;

/// Result with a positive error number.
pub(crate) type KResult<T> = core::result::Result<T, i32>;

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EINTR: i32 = 4;
pub(crate) const EIO: i32 = 5;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const EFAULT: i32 = 14;
pub(crate) const EBUSY: i32 = 16;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENOTTY: i32 = 25;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EROFS: i32 = 30;
pub(crate) const EPERM: i32 = 1;
pub(crate) const ERANGE: i32 = 34;
pub(crate) const ENAMETOOLONG: i32 = 36;
pub(crate) const ENODATA: i32 = 61;
pub(crate) const EOPNOTSUPP: i32 = 95;
pub(crate) const ESTALE: i32 = 116;

/// The type bits of a mode.
pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFIFO: u32 = 0o010_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;

/// A table of functions for the kernel.
#[repr(transparent)]
pub(crate) struct Table<T>(pub(crate) T);
// SAFETY: never written; what it points to lives as long as the module.
unsafe impl<T> Sync for Table<T> {}

impl<T> Table<T> {
    pub(crate) const fn get(&self) -> *const T {
        &self.0
    }
}

/// A structure of the kernel of which no field is set.
pub(crate) const fn blank<T>() -> T {
    // SAFETY: used for tables of functions and options, for which zeros mean absent.
    unsafe { core::mem::MaybeUninit::zeroed().assume_init() }
}

/// A result as the kernel's C code has it.
pub(crate) fn code(r: KResult<()>) -> c_int {
    match r {
        Ok(()) => 0,
        Err(e) => -e,
    }
}

/// A length or an error as the kernel's C code has it.
pub(crate) fn count(r: KResult<usize>) -> isize {
    match r {
        Ok(n) => n as isize,
        Err(e) => -(e as isize),
    }
}

/// An error as a pointer.
pub(crate) fn err_ptr<T>(e: i32) -> *mut T {
    (-(e as isize)) as *mut T
}

/// A pointer or the error that it stands for; null is no error.
pub(crate) fn check<T>(p: *mut T) -> KResult<*mut T> {
    let n = p as isize;
    if (-4095..0).contains(&n) {
        Err(-n as i32)
    } else {
        Ok(p)
    }
}

/// What a C function said: negative numbers are errors.
pub(crate) fn ok(r: c_int) -> KResult<()> {
    if r < 0 {
        Err(-r)
    } else {
        Ok(())
    }
}

/// The bytes of a C string.
pub(crate) unsafe fn bytes<'a>(s: *const c_char) -> &'a [u8] {
    // SAFETY: the caller passes a string that ends with NUL.
    unsafe { CStr::from_ptr(s.cast()) }.to_bytes()
}

/// The error number of an error of the core.
pub(crate) fn errno(e: Error) -> i32 {
    e.errno()
}

/// A time that several threads may set and read. Two that set it at once may leave a mixture; it then differs
/// from what it is compared with, and is set anew.
#[derive(Default)]
pub(crate) struct Stamp {
    sec: AtomicI64,
    nsec: AtomicU32,
}

impl Stamp {
    pub(crate) fn get(&self) -> Time {
        Time { sec: self.sec.load(Ordering::Relaxed), nsec: self.nsec.load(Ordering::Relaxed) }
    }

    pub(crate) fn set(&self, t: Time) {
        self.sec.store(t.sec, Ordering::Relaxed);
        self.nsec.store(t.nsec, Ordering::Relaxed);
    }
}

/// What the module keeps with each inode. The kernel's inode is first, so that both have the same address.
#[repr(C)]
pub(crate) struct VexInode {
    pub(crate) vfs: Opaque<c::inode>,
    /// The module's part.
    pub(crate) own: Own,
}

/// The module's part of an inode.
#[derive(Default)]
pub(crate) struct Own {
    /// Times as the core has them (access, modification, change); what differs is to be written.
    pub(crate) known: [Stamp; 3],
    /// Creation.
    pub(crate) btime: Stamp,
    /// Full generation, for file handles.
    pub(crate) generation: AtomicU64,
    /// The core counts it as open, because it lost its last name.
    pub(crate) held: AtomicBool,
    /// Blocks that cached data will take.
    pub(crate) pending: AtomicU64,
}

impl Own {
    pub(crate) fn known(&self) -> [Time; 3] {
        let [a, m, x] = &self.known;
        [a.get(), m.get(), x.get()]
    }

    pub(crate) fn set_known(&self, [a, m, x]: [Time; 3]) {
        self.known[0].set(a);
        self.set_known_changes(m, x);
    }

    pub(crate) fn set_known_changes(&self, mtime: Time, ctime: Time) {
        self.known[1].set(mtime);
        self.known[2].set(ctime);
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }
}

/// An inode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode(*mut c::inode);

impl Inode {
    /// # Safety
    /// A live inode of a VexFS, at least for as long as the handle is used.
    pub(crate) unsafe fn new(p: *mut c::inode) -> Inode {
        Inode(p)
    }

    pub(crate) fn raw(self) -> *mut c::inode {
        self.0
    }

    pub(crate) fn ino(self) -> u64 {
        // SAFETY: live by the type's promise.
        unsafe { (*self.0).i_ino as u64 }
    }

    pub(crate) fn mode(self) -> u32 {
        // SAFETY: as above.
        u32::from(unsafe { (*self.0).i_mode })
    }

    pub(crate) fn kind(self) -> u32 {
        self.mode() & S_IFMT
    }

    pub(crate) fn is_reg(self) -> bool {
        self.kind() == S_IFREG
    }

    pub(crate) fn is_dir(self) -> bool {
        self.kind() == S_IFDIR
    }

    pub(crate) fn nlink(self) -> u32 {
        // SAFETY: as above; the union is of two views of one field.
        unsafe { (*self.0).__bindgen_anon_1.i_nlink }
    }

    pub(crate) fn set_nlink(self, n: u32) {
        // SAFETY: as above.
        unsafe {
            match (n, self.nlink()) {
                (0, 0) => {}
                (0, _) => c::clear_nlink(self.0),
                _ => c::set_nlink(self.0, n),
            }
        }
    }

    pub(crate) fn size(self) -> u64 {
        // SAFETY: as above.
        unsafe { c::vexfs_i_size(self.0) as u64 }
    }

    pub(crate) fn set_size(self, size: u64) {
        // SAFETY: as above; callers hold what i_size_write asks for.
        unsafe { c::vexfs_i_size_write(self.0, size as i64) }
    }

    pub(crate) fn sb(self) -> *mut c::super_block {
        // SAFETY: as above.
        unsafe { (*self.0).i_sb }
    }

    pub(crate) fn mapping(self) -> *mut c::address_space {
        // SAFETY: as above.
        unsafe { (*self.0).i_mapping }
    }

    /// The mount's state.
    pub(crate) fn fs<'a>(self) -> &'a Fs {
        // SAFETY: every superblock that has inodes has it, until the last inode is gone.
        unsafe { Fs::of(self.sb()) }
    }

    pub(crate) fn ext<'a>(self) -> &'a Own {
        // SAFETY: all inodes are made by `inode::alloc`, which makes a `VexInode`; its own part is all atomic.
        unsafe { &(*self.0.cast::<VexInode>()).own }
    }

    pub(crate) fn lock(self) {
        // SAFETY: live inode.
        unsafe { c::vexfs_inode_lock(self.0) }
    }

    pub(crate) fn unlock(self) {
        // SAFETY: locked by the caller.
        unsafe { c::vexfs_inode_unlock(self.0) }
    }

    pub(crate) fn lock_shared(self) {
        // SAFETY: live inode.
        unsafe { c::vexfs_inode_lock_shared(self.0) }
    }

    pub(crate) fn unlock_shared(self) {
        // SAFETY: locked by the caller.
        unsafe { c::vexfs_inode_unlock_shared(self.0) }
    }

    /// Keeps pages from being read in, while the blocks under them change.
    pub(crate) fn invalidate_lock(self) {
        // SAFETY: live inode.
        unsafe { c::vexfs_invalidate_lock(self.0) }
    }

    pub(crate) fn invalidate_unlock(self) {
        // SAFETY: locked by the caller.
        unsafe { c::vexfs_invalidate_unlock(self.0) }
    }

    /// Access, modification and change time as the VFS has them.
    pub(crate) fn times(self) -> [Time; 3] {
        let (mut a, mut m, mut x) = (c::timespec64::default(), c::timespec64::default(), c::timespec64::default());
        // SAFETY: live inode, places for the results.
        unsafe { c::vexfs_times(self.0, &mut a, &mut m, &mut x) };
        [a, m, x].map(|t| Time { sec: t.tv_sec, nsec: t.tv_nsec as u32 })
    }

    pub(crate) fn set_atime(self, t: Time) {
        // SAFETY: live inode.
        unsafe { c::vexfs_set_atime(self.0, t.sec, t.nsec) }
    }

    pub(crate) fn set_mtime(self, t: Time) {
        // SAFETY: live inode.
        unsafe { c::vexfs_set_mtime(self.0, t.sec, t.nsec) }
    }

    pub(crate) fn set_ctime(self, t: Time) {
        // SAFETY: live inode.
        unsafe { c::vexfs_set_ctime(self.0, t.sec, t.nsec) }
    }

    /// What every change of the inode by the core changes: owner, mode, links, ctime.
    pub(crate) fn refresh(self, a: &Attr) {
        // SAFETY: live inode.
        unsafe {
            // What it is never changes, whatever a damaged volume says: its operations were chosen by that.
            (*self.0).i_mode = (*self.0).i_mode & S_IFMT as u16 | (a.mode & !S_IFMT) as u16;
            c::vexfs_set_ids(self.0, a.uid, a.gid);
        }
        self.set_nlink(a.nlink);
        self.set_ctime(a.ctime);
        if !self.is_reg() {
            // Of a regular file size and mtime are the page cache's business.
            self.set_mtime(a.mtime);
            self.set_size(a.size);
            self.set_blocks(a.blocks);
        }
        self.ext().set_known([a.atime, a.mtime, a.ctime]);
    }

    pub(crate) fn set_blocks(self, blocks: u64) {
        // SAFETY: live inode; a figure for stat(2).
        unsafe { (*self.0).i_blocks = blocks.saturating_mul(8) }
    }
}

/// A name in the cache.
#[derive(Clone, Copy)]
pub(crate) struct Dentry(*mut c::dentry);

impl Dentry {
    /// # Safety
    /// A live dentry of a VexFS whose name does not change while the handle is used.
    pub(crate) unsafe fn new(p: *mut c::dentry) -> Dentry {
        Dentry(p)
    }

    pub(crate) fn name<'a>(self) -> &'a [u8] {
        // SAFETY: live by the type's promise; the parent's lock keeps the name as it is.
        unsafe {
            let q = &(*self.0).d_name;
            core::slice::from_raw_parts(q.name, q.__bindgen_anon_1.__bindgen_anon_1.len as usize)
        }
    }

    pub(crate) fn inode(self) -> Option<Inode> {
        // SAFETY: live by the type's promise.
        let p = unsafe { (*self.0).d_inode };
        // SAFETY: the inode of a live dentry lives.
        (!p.is_null()).then(|| unsafe { Inode::new(p) })
    }

    /// The inode of a dentry that has one.
    pub(crate) fn positive(self) -> KResult<Inode> {
        self.inode().ok_or(ENOENT)
    }
}

/// A locked or otherwise pinned folio of the page cache.
#[derive(Clone, Copy)]
pub(crate) struct Folio(*mut c::folio);

impl Folio {
    /// # Safety
    /// A folio that stays in the cache while the handle is used: locked, under writeback or referenced.
    pub(crate) unsafe fn new(p: *mut c::folio) -> Folio {
        Folio(p)
    }

    pub(crate) fn raw(self) -> *mut c::folio {
        self.0
    }

    pub(crate) fn pos(self) -> u64 {
        // SAFETY: pinned by the type's promise; so for all below.
        unsafe { c::vexfs_folio_pos(self.0) as u64 }
    }

    pub(crate) fn size(self) -> usize {
        // SAFETY: as above.
        unsafe { c::vexfs_folio_size(self.0) }
    }

    pub(crate) fn blocks(self) -> u64 {
        self.size() as u64 / 4096
    }

    /// Its bytes. Other threads may write to them through mappings, so they are only ever copied.
    pub(crate) fn data(self) -> *mut u8 {
        // SAFETY: as above; memory of a 64-bit kernel is always mapped.
        unsafe { c::vexfs_folio_data(self.0).cast() }
    }

    /// Copies bytes in.
    pub(crate) fn write(self, at: usize, from: &[u8]) {
        let n = from.len().min(self.size().saturating_sub(at));
        // SAFETY: within the folio; `from` is not part of it.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), self.data().add(at), n) }
    }

    /// Zeros its bytes from `at` up to but without `to`.
    pub(crate) fn zero(self, at: usize, to: usize) {
        let n = to.min(self.size()).saturating_sub(at);
        // SAFETY: within the folio.
        unsafe { core::ptr::write_bytes(self.data().add(at), 0, n) }
    }

    pub(crate) fn unlock(self) {
        // SAFETY: locked by the caller.
        unsafe { c::vexfs_folio_unlock(self.0) }
    }

    pub(crate) fn put(self) {
        // SAFETY: the caller has a reference and uses the handle no more.
        unsafe { c::vexfs_folio_put(self.0) }
    }

    pub(crate) fn uptodate(self) -> bool {
        // SAFETY: as above.
        unsafe { c::vexfs_folio_uptodate(self.0) }
    }

    pub(crate) fn set_uptodate(self) {
        // SAFETY: locked by the caller.
        unsafe { c::vexfs_folio_set_uptodate(self.0) }
    }

    pub(crate) fn dirty(self) -> bool {
        // SAFETY: as above.
        unsafe { c::vexfs_folio_dirty(self.0) }
    }

    pub(crate) fn mark_dirty(self) {
        // SAFETY: locked by the caller.
        unsafe { c::folio_mark_dirty(self.0) };
    }

    pub(crate) fn wait_writeback(self) {
        // SAFETY: as above.
        unsafe { c::vexfs_folio_wait_writeback(self.0) }
    }

    pub(crate) fn start_writeback(self) {
        // SAFETY: locked by the caller.
        unsafe { c::vexfs_folio_start_writeback(self.0) }
    }

    pub(crate) fn end_writeback(self) {
        // SAFETY: under writeback; the handle is used no more.
        unsafe { c::folio_end_writeback(self.0) }
    }

    /// A read has ended: unlocks it.
    pub(crate) fn end_read(self, success: bool) {
        // SAFETY: locked and not up to date; the handle is used no more.
        unsafe { c::folio_end_read(self.0, success) }
    }

    /// Whether blocks are set aside for it.
    pub(crate) fn has_reservation(self) -> bool {
        // SAFETY: as above.
        unsafe { c::vexfs_folio_private(self.0) }
    }

    pub(crate) fn mark_reservation(self, yes: bool) {
        // SAFETY: locked or under writeback; the mark is the module's.
        unsafe {
            if yes {
                c::vexfs_folio_attach(self.0)
            } else {
                c::vexfs_folio_detach(self.0)
            }
        }
    }
}
