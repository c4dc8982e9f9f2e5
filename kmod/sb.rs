// SPDX-License-Identifier: GPL-2.0-only
//! Superblocks: the state of a mount, filling, syncing, freezing, statistics, unmounting.

use crate::bindings as c;
use crate::host::Host;
use crate::mount::{self, MountOptions, OnError};
use crate::sync::Mutex;
use crate::vfs::{blank, code, errno, KResult, Table, EIO, ENOMEM, EROFS};
use crate::{export, inode, sysfs, xattr};
use core::ffi::CStr;
use core::ptr::{null_mut, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::ffi::c_int;
use kernel::prelude::*;
use vexfs_core::engine::Stats;
use vexfs_core::mem::{self, Map};
use vexfs_core::op::{Attr, Ino, Op, Reply, StatFs, ROOT};
use vexfs_core::Error;

/// What statfs(2) calls the file system: "vexf".
const MAGIC: u64 = 0x7665_7866;
/// Largest file, as the core has it.
const SIZE_MAX: i64 = 1 << 62;

/// The state of a mount.
pub(crate) struct Fs {
    host: mem::Box<Host>,
    sb: *mut c::super_block,
    options: Mutex<MountOptions>,
    /// Bytes that the sessions of each user hold, by user id.
    pub(crate) sessions: Mutex<Map<usize>>,
    /// The failure was reported.
    reported: AtomicBool,
    /// FS_IOC_SHUTDOWN came.
    shut: AtomicBool,
    pub(crate) object: sysfs::Object,
}

impl Fs {
    /// The state of a mount. Without memory the host is dropped, and stopped by that.
    #[inline(never)]
    fn new(host: mem::Box<Host>, sb: *mut c::super_block, options: MountOptions) -> KResult<mem::Box<Fs>> {
        let fs = mem::Box::try_new(Fs {
            host,
            sb,
            options: Mutex::new(options),
            sessions: Mutex::new(Map::new()),
            reported: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            object: sysfs::Object::new(),
        });
        let fs = fs.map_err(|_| ENOMEM)?;
        fs.options.init();
        fs.sessions.init_inner();
        Ok(fs)
    }

    /// The state of the mount of `sb`.
    ///
    /// # Safety
    /// A superblock that `fill` has filled and `put_super` has not emptied, as long as the reference is used.
    pub(crate) unsafe fn of<'a>(sb: *mut c::super_block) -> &'a Fs {
        // SAFETY: by the caller's promise.
        unsafe { &*(*sb).s_fs_info.cast::<Fs>() }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn sb(&self) -> *mut c::super_block {
        self.sb
    }

    pub(crate) fn options(&self) -> MountOptions {
        *self.options.lock()
    }

    pub(crate) fn set_options(&self, new: MountOptions) {
        self.host.set(new.cache, new.commit, new.discard);
        *self.options.lock() = new;
    }

    pub(crate) fn name(&self) -> &str {
        // SAFETY: the superblock's name is a C string inside of it.
        unsafe { CStr::from_ptr(c::vexfs_sb_id(self.sb).cast()) }.to_str().unwrap_or("?")
    }

    pub(crate) fn stats(&self) -> Stats {
        self.host.stats()
    }

    /// Nothing goes on after a shutdown.
    pub(crate) fn up(&self) -> KResult<()> {
        if self.is_shut() {
            return Err(EIO);
        }
        Ok(())
    }

    /// Carries out a read and waits.
    pub(crate) fn call(&self, op: Op) -> KResult<Reply> {
        self.host.call(op).map_err(errno)
    }

    /// Carries out a change and waits. See `Host::change`.
    pub(crate) fn change(&self, hold: Option<Ino>, op: Op) -> KResult<Reply> {
        self.up()?;
        self.host.change(hold, op).map_err(|e| {
            self.failed(e);
            errno(e)
        })
    }

    /// The attributes that a reply has.
    pub(crate) fn attr(&self, op: Op) -> KResult<Attr> {
        attr_of(self.call(op)?)
    }

    /// The bytes that a reply has.
    pub(crate) fn bytes(&self, op: Op) -> KResult<alloc::vec::Vec<u8>> {
        match self.call(op)? {
            Reply::Bytes(b) => Ok(b),
            _ => Err(EIO),
        }
    }

    pub(crate) fn statfs(&self) -> KResult<StatFs> {
        match self.call(Op::StatFs)? {
            Reply::StatFs(f) => Ok(f),
            _ => Err(EIO),
        }
    }

    /// Makes durable all that was acknowledged.
    pub(crate) fn sync(&self) -> KResult<()> {
        if self.host.read_only() {
            return Ok(());
        }
        self.up()?;
        self.host.call(Op::Sync).map(|_| ()).map_err(|e| {
            self.failed(e);
            errno(e)
        })
    }

    /// Writes out all that is in the page cache, and a checkpoint.
    pub(crate) fn settle(&self) -> KResult<()> {
        // SAFETY: a live superblock whose lock the caller holds.
        let written = crate::vfs::ok(unsafe { c::sync_filesystem(self.sb) });
        if self.host.is_aborted() || self.host.read_only() {
            return Ok(());
        }
        written?;
        self.host.call(Op::Checkpoint).map(|_| ()).map_err(errno)
    }

    /// Does what `errors=` says if the volume can be written no more.
    pub(crate) fn failed(&self, e: Error) {
        if !self.host.is_aborted() || !matches!(e, Error::Aborted | Error::Io) {
            return;
        }
        if self.reported.swap(true, Ordering::AcqRel) {
            return;
        }
        pr_crit!("{}: a write or flush failed; nothing can be changed until it is mounted again\n", self.name());
        match self.options().errors {
            OnError::Continue => {}
            // SAFETY: a live superblock; a flag that only takes rights away.
            OnError::ReadOnly => unsafe { c::vexfs_sb_force_rdonly(self.sb) },
            // SAFETY: the name of a live superblock.
            OnError::Panic => unsafe { c::vexfs_panic(c::vexfs_sb_id(self.sb)) },
        }
    }

    /// Ends all changing on request.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
        self.reported.store(true, Ordering::Release);
        self.host.abort();
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }
}

/// The attributes that a reply has.
pub(crate) fn attr_of(r: Reply) -> KResult<Attr> {
    match r {
        Reply::Attr(a) => Ok(a),
        _ => Err(EIO),
    }
}

static OPERATIONS: Table<c::super_operations> = Table(c::super_operations {
    alloc_inode: Some(inode::alloc),
    free_inode: Some(inode::free),
    write_inode: Some(inode::write_inode),
    evict_inode: Some(inode::evict),
    put_super: Some(put_super),
    sync_fs: Some(sync_fs),
    freeze_fs: Some(freeze_fs),
    unfreeze_fs: Some(unfreeze_fs),
    statfs: Some(statfs),
    show_options: Some(show_options),
    shutdown: Some(shutdown),
    ..blank()
});

/// Fills a superblock: opens the volume and finds the root.
///
/// # Safety
/// A fresh superblock with its device.
pub(crate) unsafe fn fill(s: *mut c::super_block, options: MountOptions) -> KResult<()> {
    // SAFETY: by the caller's promise; the fields are ours to set before the superblock is seen by others.
    unsafe {
        if c::sb_set_blocksize(s, 4096) == 0 {
            pr_err!("{}: the device's sectors are larger than 4096 bytes\n", id(s));
            return Err(crate::vfs::EINVAL);
        }
        // Bios go past the device's own page cache.
        c::vexfs_invalidate_bdev((*s).s_bdev);
        (*s).s_magic = MAGIC as _;
        (*s).s_maxbytes = SIZE_MAX;
        (*s).s_time_gran = 1;
        (*s).s_time_min = i64::MIN;
        (*s).s_time_max = i64::MAX;
        (*s).s_flags |= (c::VEXFS_SB_POSIXACL | c::VEXFS_SB_NOSEC) as kernel::ffi::c_ulong;
        (*s).s_op = OPERATIONS.get();
        (*s).s_xattr = xattr::handlers();
        (*s).s_export_op = export::OPERATIONS.get();
        let read_only = c::vexfs_sb_rdonly(s);
        let host = Host::open((*s).s_bdev, c::vexfs_sb_id(s), &options.host(read_only)).inspect_err(|e| {
            pr_err!("{}: cannot be mounted: {}\n", id(s), why(*e));
        })?;
        let fs = Fs::new(host, s, options)?;
        let fs = mem::Box::into_raw(fs).as_ptr();
        (*s).s_fs_info = fs.cast();
        (*fs).host.belongs_to(fs);
        let r = finish(s);
        if r.is_err() && (*s).s_root.is_null() {
            // put_super will not be called.
            take(s);
        }
        r
    }
}

/// What follows once the state is there.
unsafe fn finish(s: *mut c::super_block) -> KResult<()> {
    // SAFETY: as in `fill`.
    unsafe {
        let fs = Fs::of(s);
        let f = fs.statfs()?;
        c::vexfs_set_uuid(s, f.uuid.as_ptr());
        fs.object.add(fs)?;
        let root = inode::get(s, ROOT)?;
        mount::make_root(s, root.raw())
    }
}

unsafe fn id<'a>(s: *mut c::super_block) -> &'a str {
    // SAFETY: a C string inside of the superblock.
    unsafe { CStr::from_ptr(c::vexfs_sb_id(s).cast()) }.to_str().unwrap_or("?")
}

/// One line for people who look why a mount failed.
fn why(e: i32) -> &'static str {
    match e {
        5 => "input/output error, or the volume is damaged; run fsck.vexfs",
        12 => "out of memory",
        22 => "no VexFS, of a newer version, or larger than the device",
        _ => "error",
    }
}

/// Takes the state away and closes the volume.
unsafe fn take(s: *mut c::super_block) {
    // SAFETY: nobody uses the mount any more.
    unsafe {
        let Some(p) = NonNull::new((*s).s_fs_info.cast::<Fs>()) else { return };
        let fs = mem::Box::from_raw(p);
        fs.object.remove();
        if let Err(e) = fs.host.close() {
            if !fs.is_shut() {
                pr_err!("{}: could not be closed cleanly: {}\n", fs.name(), e.message());
            }
        }
        c::vexfs_invalidate_bdev((*s).s_bdev);
        (*s).s_fs_info = null_mut();
    }
}

unsafe extern "C" fn put_super(s: *mut c::super_block) {
    // SAFETY: the last use of a superblock that was filled.
    unsafe { take(s) }
}

unsafe extern "C" fn sync_fs(s: *mut c::super_block, wait: c_int) -> c_int {
    // SAFETY: a superblock; without state it was not filled.
    unsafe {
        if (*s).s_fs_info.is_null() || wait == 0 {
            return 0;
        }
        code(Fs::of(s).sync())
    }
}

unsafe extern "C" fn freeze_fs(s: *mut c::super_block) -> c_int {
    // SAFETY: a filled superblock; the VFS keeps changes away.
    let fs = unsafe { Fs::of(s) };
    if fs.host.is_aborted() || fs.host.read_only() {
        return 0;
    }
    code(fs.host.call(Op::Checkpoint).map_err(errno).and_then(|_| fs.host.freeze()))
}

unsafe extern "C" fn unfreeze_fs(s: *mut c::super_block) -> c_int {
    // SAFETY: a filled superblock, which is locked.
    unsafe {
        let fs = Fs::of(s);
        fs.host.thaw();
        if c::vexfs_sb_rdonly(s) {
            fs.host.set_quiet(true);
        }
    }
    0
}

unsafe extern "C" fn statfs(d: *mut c::dentry, out: *mut c::kstatfs) -> c_int {
    // SAFETY: a dentry of a filled superblock, a place for the result.
    code(unsafe {
        let fs = Fs::of((*d).d_sb);
        fs.statfs().map(|f| {
            let reserved = fs.host.reserved();
            let o = &mut *out;
            o.f_type = MAGIC as _;
            o.f_bsize = 4096;
            o.f_blocks = f.blocks;
            o.f_bfree = f.free.saturating_sub(reserved);
            o.f_bavail = fs.host.available().saturating_sub(reserved);
            // There is no table of inodes: every free block could hold some.
            o.f_files = f.inodes.saturating_add(f.free);
            o.f_ffree = f.free;
            o.f_namelen = 255;
            o.f_frsize = 4096;
            let [a, b, x, y, ..] = f.uuid;
            let [.., e, g, h, i] = f.uuid;
            o.f_fsid.val = [i32::from_le_bytes([a, b, x, y]), i32::from_le_bytes([e, g, h, i])];
        })
    })
}

unsafe extern "C" fn show_options(m: *mut c::seq_file, d: *mut c::dentry) -> c_int {
    // SAFETY: a dentry of a filled superblock, a file to print to.
    unsafe {
        let o = Fs::of((*d).d_sb).options();
        c::vexfs_seq_number(m, c"cache".as_ptr().cast(), o.cache);
        c::vexfs_seq_number(m, c"commit".as_ptr().cast(), u64::from(o.commit));
        let errors = match o.errors {
            OnError::Continue => c",errors=continue",
            OnError::ReadOnly => c",errors=remount-ro",
            OnError::Panic => c",errors=panic",
        };
        c::vexfs_seq_puts(m, errors.as_ptr().cast());
        match o.discard {
            0 => {}
            mount::DISCARD_SECONDS => c::vexfs_seq_puts(m, c",discard".as_ptr().cast()),
            n => c::vexfs_seq_number(m, c"discard".as_ptr().cast(), u64::from(n)),
        }
    }
    0
}

/// The device is gone.
unsafe extern "C" fn shutdown(s: *mut c::super_block) {
    // SAFETY: a filled superblock.
    unsafe {
        if !(*s).s_fs_info.is_null() {
            Fs::of(s).shut();
        }
    }
}

/// A change was asked for where there may be none.
pub(crate) fn writable(fs: &Fs) -> KResult<()> {
    // SAFETY: a live superblock.
    if unsafe { c::vexfs_sb_rdonly(fs.sb) } {
        return Err(EROFS);
    }
    Ok(())
}
