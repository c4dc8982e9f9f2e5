// SPDX-License-Identifier: GPL-2.0-only
//! The page cache of regular files: reading pages in (the core checks what it reads), writing dirty pages back, changing
//! the size, and setting space aside for data that is not written yet, so that a full disk is told to who writes.
//!
//! Data is copied out of a folio when its writing begins, while it is locked and mapped read-only; so whatever
//! happens to the folio then, what is checksummed is what is written.

use crate::bindings as c;
use crate::host::{Done, Host};
use crate::sb::attr_of;
use crate::sync::NoFs;
use crate::vfs::{blank, check, code, ok, Folio, Inode, KResult, Table, EFAULT, EIO, ENOMEM, ENOSPC};
use alloc::vec::Vec;
use core::ptr::{null_mut, NonNull};
use core::sync::atomic::Ordering;
use kernel::ffi::c_int;
use vexfs_core::mem;
use vexfs_core::op::{Attr, Op, Reply, SetAttr, Time, WriteTimes};
use vexfs_core::Error;

/// Bytes of one read or write of the core: large enough for the device, small enough that memory for it is found.
const BATCH: usize = 1 << 19;
const PAGE: u64 = 4096;

pub(crate) static OPERATIONS: Table<c::address_space_operations> = Table(c::address_space_operations {
    read_folio: Some(read_folio),
    readahead: Some(readahead),
    writepages: Some(writepages),
    dirty_folio: Some(c::filemap_dirty_folio),
    invalidate_folio: Some(invalidate_folio),
    release_folio: Some(release_folio),
    #[cfg(CONFIG_MIGRATION)]
    migrate_folio: Some(c::filemap_migrate_folio),
    ..blank()
});

// ---- Reading.

/// Locked folios that follow each other, to be filled by one read.
pub(crate) struct ReadBatch {
    next: *mut ReadBatch,
    start: u64,
    folios: Vec<Folio>,
    reply: Option<Result<Reply, Error>>,
}

impl ReadBatch {
    /// Puts a batch with its reply into a list.
    pub(crate) fn chain(mut b: mem::Box<ReadBatch>, reply: Result<Reply, Error>, list: &mut *mut ReadBatch) {
        b.reply = Some(reply);
        b.next = *list;
        *list = mem::Box::into_raw(b).as_ptr();
    }

    /// Carries out what the replies of a list ask for.
    pub(crate) fn run(_host: &Host, mut list: *mut ReadBatch) {
        while let Some(p) = NonNull::new(list) {
            // SAFETY: made by `chain`, taken once.
            let b = unsafe { mem::Box::from_raw(p) };
            list = b.next;
            b.fill();
        }
    }

    fn fill(&self) {
        let bytes = match &self.reply {
            Some(Ok(Reply::Bytes(b))) => Some(b),
            _ => None,
        };
        for f in &self.folios {
            let Some(bytes) = bytes else {
                f.end_read(false);
                continue;
            };
            let skip = f.pos().saturating_sub(self.start) as usize;
            let mine = bytes.get(skip..).unwrap_or_default();
            let mine = mine.get(..f.size()).unwrap_or(mine);
            f.write(0, mine);
            f.zero(mine.len(), f.size());
            // SAFETY: a locked folio.
            unsafe { c::vexfs_flush_dcache(f.raw()) };
            f.end_read(true);
        }
    }
}

/// Collects folios for reads.
struct Reader {
    inode: Inode,
    batch: Option<mem::Box<ReadBatch>>,
    len: usize,
}

impl Reader {
    fn add(&mut self, f: Folio) {
        if f.pos() >= self.inode.size() {
            f.zero(0, f.size());
            f.end_read(true);
            return;
        }
        if self.len + f.size() > BATCH {
            self.send();
        }
        if self.batch.is_none() {
            let b = ReadBatch { next: null_mut(), start: f.pos(), folios: Vec::new(), reply: None };
            self.batch = mem::Box::try_new(b).ok();
            self.len = 0;
        }
        match self.batch.as_mut().map(|b| mem::push(&mut b.folios, f)) {
            Some(Ok(())) => self.len += f.size(),
            // Whoever needs it reads it alone.
            _ => f.end_read(false),
        }
    }

    fn send(&mut self) {
        let Some(b) = self.batch.take() else { return };
        let op = Op::Read { ino: self.inode.ino(), offset: b.start, len: self.len };
        self.len = 0;
        if b.folios.is_empty() {
            return;
        }
        self.inode.fs().host().post(op, 0, Done::Read(b));
    }
}

unsafe extern "C" fn read_folio(_file: *mut c::file, f: *mut c::folio) -> c_int {
    let _nofs = NoFs::enter();
    // SAFETY: the VFS passes a locked folio of a file of ours.
    let (f, inode) = unsafe { (Folio::new(f), Inode::new(c::vexfs_folio_inode(f))) };
    if let Err(e) = inode.fs().up() {
        f.unlock();
        return -e;
    }
    // Who asked waits for it anyway; so it is told the error: without memory it is not the device that failed.
    let r = fill(inode, f);
    f.unlock();
    code(r)
}

unsafe extern "C" fn readahead(r: *mut c::readahead_control) {
    // SAFETY: the VFS passes locked folios, which follow each other, of a file of ours; each is unlocked when it is read.
    unsafe {
        let inode = Inode::new(c::vexfs_readahead_inode(r));
        if inode.fs().up().is_err() {
            // Whoever needs them reads them alone, and is told.
            return;
        }
        let mut reader = Reader { inode, batch: None, len: 0 };
        loop {
            let f = c::vexfs_readahead_folio(r);
            if f.is_null() {
                break;
            }
            reader.add(Folio::new(f));
        }
        reader.send();
    }
}

/// Fills a locked folio and waits for that.
fn fill(inode: Inode, f: Folio) -> KResult<()> {
    let mut got = 0;
    if f.pos() < inode.size() {
        let op = Op::Read { ino: inode.ino(), offset: f.pos(), len: f.size() };
        let b = inode.fs().bytes(op)?;
        f.write(0, &b);
        got = b.len();
    }
    f.zero(got, f.size());
    f.set_uptodate();
    Ok(())
}

// ---- Space that is set aside.

/// Sets space aside for a locked folio that is to become dirty.
pub(crate) fn reserve(inode: Inode, f: Folio) -> KResult<()> {
    if f.has_reservation() {
        return Ok(());
    }
    let host = inode.fs().host();
    if !host.reserve(f.blocks()) {
        // Space that was allocated before takes the data without more.
        if !preallocated(inode, f)? {
            return Err(ENOSPC);
        }
        host.reserve_anyway(f.blocks());
    }
    inode.ext().pending.fetch_add(f.blocks(), Ordering::Relaxed);
    f.mark_reservation(true);
    Ok(())
}

/// Sets space aside for a write of so many bytes past the page cache; gives the blocks, for `Host::unreserve`.
pub(crate) fn reserve_direct(inode: Inode, offset: u64, len: usize) -> KResult<u64> {
    let end = offset.saturating_add(len as u64);
    let blocks = end.div_ceil(PAGE).saturating_sub(offset / PAGE);
    let host = inode.fs().host();
    if host.reserve(blocks) {
        return Ok(blocks);
    }
    make_room(inode);
    if host.reserve(blocks) {
        return Ok(blocks);
    }
    let start = offset / PAGE * PAGE;
    if !is_preallocated(inode, start, end.saturating_sub(start))? {
        return Err(ENOSPC);
    }
    host.reserve_anyway(blocks);
    Ok(blocks)
}

/// Space of data that was overwritten or removed comes back with a checkpoint.
fn make_room(inode: Inode) {
    // SAFETY: a live mapping.
    unsafe { c::filemap_flush(inode.mapping()) };
    let _ = inode.fs().call(Op::Checkpoint);
}

fn preallocated(inode: Inode, f: Folio) -> KResult<bool> {
    is_preallocated(inode, f.pos(), f.size() as u64)
}

fn is_preallocated(inode: Inode, start: u64, len: u64) -> KResult<bool> {
    let op = Op::Extents { ino: inode.ino(), offset: start, len, max: 64 };
    let Reply::Extents(list) = inode.fs().call(op)? else { return Err(EIO) };
    let mut at = start;
    for e in list.iter().filter(|e| e.unwritten) {
        if e.logical <= at {
            at = at.max(e.logical.saturating_add(e.len));
        }
    }
    Ok(at >= start.saturating_add(len))
}

/// Gives it back: the folio is written or gone.
fn unreserve(inode: Inode, f: Folio) {
    if f.has_reservation() {
        inode.fs().host().unreserve(f.blocks());
        inode.ext().pending.fetch_sub(f.blocks(), Ordering::Relaxed);
        f.mark_reservation(false);
    }
}

unsafe extern "C" fn invalidate_folio(f: *mut c::folio, at: usize, len: usize) {
    // SAFETY: the VFS passes a locked folio of ours.
    let (f, inode) = unsafe { (Folio::new(f), Inode::new(c::vexfs_folio_inode(f))) };
    if at == 0 && len >= f.size() {
        unreserve(inode, f);
    }
}

unsafe extern "C" fn release_folio(f: *mut c::folio, _gfp: c::gfp_t) -> bool {
    // SAFETY: the VFS passes a locked folio of ours.
    let (f, inode) = unsafe { (Folio::new(f), Inode::new(c::vexfs_folio_inode(f))) };
    if f.dirty() {
        return false;
    }
    unreserve(inode, f);
    true
}

// ---- Writing back.

/// Folios under writeback, whose data went into one write.
pub(crate) struct WriteBatch {
    next: *mut WriteBatch,
    inode: Inode,
    start: u64,
    bytes: usize,
    times: WriteTimes,
    folios: Vec<Folio>,
    reply: Option<Result<Reply, Error>>,
}

impl WriteBatch {
    /// Puts a batch with its reply into a list.
    pub(crate) fn chain(mut b: mem::Box<WriteBatch>, reply: Result<Reply, Error>, list: &mut *mut WriteBatch) {
        b.reply = Some(reply);
        b.next = *list;
        *list = mem::Box::into_raw(b).as_ptr();
    }

    /// Carries out what the replies of a list ask for.
    pub(crate) fn run(host: &Host, mut list: *mut WriteBatch) {
        while let Some(p) = NonNull::new(list) {
            // SAFETY: made by `chain`, taken once.
            let b = unsafe { mem::Box::from_raw(p) };
            list = b.next;
            host.unpost(b.bytes);
            b.end();
        }
    }

    fn end(&self) {
        let inode = self.inode;
        // SAFETY: the inode stays until its last folio under writeback is done, which is at the end here.
        unsafe {
            let (done, error) = match &self.reply {
                Some(Ok(Reply::Written(n))) => (*n as u64, Some(Error::NoSpace)),
                Some(Err(e)) => (0, Some(*e)),
                _ => (0, Some(Error::Io)),
            };
            let good = self.start.saturating_add(done);
            let whole = done >= self.bytes as u64;
            if let (false, Some(e)) = (whole, error) {
                inode.fs().failed(e);
                c::vexfs_mapping_error(inode.raw(), -e.errno());
            }
            let [_, mtime, ctime] = inode.times();
            if mtime != self.times.mtime || ctime != self.times.ctime {
                // They were changed meanwhile: what the write brought to the core is not the last word.
                inode.ext().set_known_changes(Time::default(), Time::default());
                c::vexfs_mark_dirty_sync(inode.raw());
            }
            for f in &self.folios {
                let lost = f.pos().saturating_add(f.size() as u64) > good && !whole;
                if lost && error == Some(Error::NoMemory) {
                    // Not lost: to be written once more.
                    c::filemap_dirty_folio(inode.mapping(), f.raw());
                } else {
                    unreserve(inode, *f);
                }
                f.end_writeback();
            }
        }
    }
}

/// Collects dirty folios for writes.
struct Writer {
    inode: Inode,
    batch: Option<mem::Box<WriteBatch>>,
    data: Vec<u8>,
}

impl Writer {
    /// Takes a locked folio in: copies `len` bytes and puts it under writeback. On failure it is as it was.
    fn add(&mut self, f: Folio, len: usize) -> KResult<()> {
        let follows = |b: &WriteBatch, data: &Vec<u8>| b.start.saturating_add(data.len() as u64) == f.pos();
        if self.batch.as_ref().is_some_and(|b| !follows(b, &self.data) || self.data.len() + len > BATCH) {
            self.send();
        }
        if self.batch.is_none() {
            let [_, mtime, ctime] = self.inode.times();
            let b = WriteBatch {
                next: null_mut(),
                inode: self.inode,
                start: f.pos(),
                bytes: 0,
                times: WriteTimes { mtime, ctime },
                folios: Vec::new(),
                reply: None,
            };
            self.batch = Some(mem::Box::try_new(b).map_err(|_| ENOMEM)?);
        } else if self.data.capacity() < self.data.len() + len {
            // One folio may be alone; two that follow each other are the beginning of many.
            let start = self.inode.size().saturating_sub(f.pos()).saturating_add(self.data.len() as u64);
            let all = usize::try_from(start).unwrap_or(BATCH).min(BATCH);
            // Without the room for more it goes on with what there is.
            let _ = self.data.try_reserve_exact(all.saturating_sub(self.data.len()));
        }
        let Some(b) = self.batch.as_mut() else { return Err(ENOMEM) };
        mem::reserve(&mut self.data, len).map_err(|_| ENOMEM)?;
        mem::push(&mut b.folios, f).map_err(|_| ENOMEM)?;
        f.start_writeback();
        let at = self.data.len();
        // SAFETY: room for `len` bytes was made; the folio holds as many. Its mappings are read-only since it was made
        // clean, so the bytes do not change here.
        unsafe {
            core::ptr::copy_nonoverlapping(f.data(), self.data.as_mut_ptr().add(at), len);
            self.data.set_len(at + len);
        }
        f.unlock();
        Ok(())
    }

    fn send(&mut self) {
        let Some(mut b) = self.batch.take() else { return };
        let data = core::mem::take(&mut self.data);
        if b.folios.is_empty() {
            return;
        }
        let n = data.len();
        b.bytes = n;
        self.inode.ext().set_known_changes(b.times.mtime, b.times.ctime);
        let host = self.inode.fs().host();
        let op = Op::Write { ino: self.inode.ino(), offset: b.start, data, kill_suid: false, times: Some(b.times) };
        host.changed();
        host.post(op, n, Done::Write(b));
    }
}

unsafe extern "C" fn writepages(mapping: *mut c::address_space, wbc: *mut c::writeback_control) -> c_int {
    // Folios are locked and under writeback before what writes them is submitted: reclaim must not wait for them.
    let _nofs = NoFs::enter();
    // SAFETY: the VFS passes the mapping of a file of ours; `writeback_iter` gives locked folios that were made clean, and
    // takes note of errors that it is told.
    unsafe {
        let inode = Inode::new((*mapping).host);
        let mut w = Writer { inode, batch: None, data: Vec::new() };
        let mut error = 0;
        let mut p = null_mut();
        loop {
            p = c::writeback_iter(mapping, wbc, p, &mut error);
            if p.is_null() {
                break;
            }
            let f = Folio::new(p);
            let size = inode.size();
            if f.pos() >= size {
                // A truncate is about to take it away.
                f.unlock();
                continue;
            }
            let len = usize::try_from(size.saturating_sub(f.pos())).unwrap_or(usize::MAX).min(f.size());
            if let Err(e) = w.add(f, len) {
                c::folio_redirty_for_writepage(wbc, p);
                f.unlock();
                error = -e;
            }
        }
        w.send();
        error
    }
}

// ---- Changes of the size.

/// Bytes behind the end of file, which a mapping may have written, must not become part of it when it grows.
pub(crate) fn zero_tail(inode: Inode, size: u64) {
    if size % PAGE == 0 {
        return;
    }
    // SAFETY: a live inode; the folio comes locked and with a reference, both of which are given back.
    unsafe {
        if let Ok(p) = check(c::vexfs_lock_folio(inode.raw(), size.cast_signed())) {
            if p.is_null() {
                return;
            }
            let f = Folio::new(p);
            if f.uptodate() {
                f.zero(size.saturating_sub(f.pos()) as usize, f.size());
            }
            f.unlock();
            f.put();
        }
    }
}

/// Changes the size of a locked file, and whatever else `set` says.
pub(crate) fn resize(inode: Inode, size: u64, set: SetAttr) -> KResult<Attr> {
    let old = inode.size();
    // SAFETY: a locked inode.
    unsafe { c::inode_dio_wait(inode.raw()) };
    inode.invalidate_lock();
    let r = if size >= old {
        zero_tail(inode, old);
        let r = inode.fs().change(None, Op::SetAttr { ino: inode.ino(), set }).and_then(attr_of);
        if r.is_ok() && size > old {
            // SAFETY: a locked inode.
            unsafe { c::truncate_setsize(inode.raw(), size.cast_signed()) };
        }
        r
    } else {
        // First the pages, so that none of them is written behind the core's cut.
        // SAFETY: a locked inode.
        unsafe { c::truncate_setsize(inode.raw(), size.cast_signed()) };
        let r = inode.fs().change(None, Op::SetAttr { ino: inode.ino(), set }).and_then(attr_of);
        if r.is_err() {
            // What the core still has is there again.
            if let Ok(a) = inode.fs().attr(Op::GetAttr { ino: inode.ino() }) {
                inode.set_size(a.size.max(size).min(old));
            }
        }
        r
    };
    inode.invalidate_unlock();
    r
}

// ---- Buffered writing and mappings.

/// Copies what `iter` has into the page cache, from `pos` on. The inode is locked. Gives the number of bytes, or an
/// error if there is none.
pub(crate) unsafe fn write(inode: Inode, mut pos: u64, iter: *mut c::iov_iter) -> KResult<usize> {
    let mut done = 0usize;
    let mut tried = false;
    if pos > inode.size() {
        zero_tail(inode, inode.size());
    }
    // SAFETY: the caller passes a valid iterator.
    while unsafe { c::vexfs_iter_count(iter) } > 0 {
        // SAFETY: as above.
        match unsafe { write_some(inode, pos, iter) } {
            Ok(0) => {}
            Ok(n) => {
                done += n;
                pos += n as u64;
                tried = false;
                // SAFETY: a live mapping; no folio is locked.
                unsafe { c::balance_dirty_pages_ratelimited(inode.mapping()) };
            }
            Err(ENOSPC) if !tried => {
                tried = true;
                make_room(inode);
            }
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
        // SAFETY: the current task.
        if unsafe { c::vexfs_fatal_signal() } {
            if done == 0 {
                return Err(4);
            }
            break;
        }
        crate::env::resched();
    }
    Ok(done)
}

/// Fills one folio, or a part of it.
unsafe fn write_some(inode: Inode, pos: u64, iter: *mut c::iov_iter) -> KResult<usize> {
    // SAFETY: the caller passes a valid iterator; the folio comes locked and with a reference, both of which are given back.
    unsafe {
        // No more than a folio can be: what is faulted in and does not fit this one is faulted in again for the next.
        let most = BATCH.min(c::vexfs_folio_most(inode.raw())).max(PAGE as usize);
        let within = (pos % PAGE) as usize;
        let chunk = c::vexfs_iter_count(iter).min(most - within);
        // The copy below must not fault while the folio is locked: it could be a mapping of this very folio.
        let chunk = match chunk - c::fault_in_iov_iter_readable(iter, chunk) {
            0 => return Err(EFAULT),
            n => n,
        };
        let p = check(c::vexfs_begin_folio(inode.raw(), pos.cast_signed(), chunk))?;
        if p.is_null() {
            return Err(ENOMEM);
        }
        let f = Folio::new(p);
        let r = fill_folio(inode, f, pos, chunk, iter);
        f.unlock();
        f.put();
        r
    }
}

unsafe fn fill_folio(inode: Inode, f: Folio, pos: u64, chunk: usize, iter: *mut c::iov_iter) -> KResult<usize> {
    let _nofs = NoFs::enter();
    let at = pos.saturating_sub(f.pos()) as usize;
    let n = chunk.min(f.size() - at);
    f.wait_writeback();
    reserve(inode, f)?;
    let r = (|| {
        let whole = at == 0 && n == f.size();
        if !f.uptodate() && !whole {
            fill(inode, f)?;
        }
        // SAFETY: within the folio, which is locked; a fault only makes it short.
        let copied = unsafe { c::vexfs_copy_from_iter_atomic(f.raw(), at, n, iter) };
        if copied < n && !f.uptodate() {
            // A page of the source went away: nothing of this counts. Once the folio is filled, a part will do.
            // SAFETY: what was taken is put back.
            unsafe { c::iov_iter_revert(iter, copied) };
            fill(inode, f)?;
            return Ok(0);
        }
        // SAFETY: a locked folio.
        unsafe { c::vexfs_flush_dcache(f.raw()) };
        if copied > 0 {
            f.set_uptodate();
            let end = pos.saturating_add(copied as u64);
            if end > inode.size() {
                inode.set_size(end);
            }
            f.mark_dirty();
        }
        Ok(copied)
    })();
    if !f.dirty() {
        unreserve(inode, f);
    }
    r
}

/// A page of a shared mapping is about to be written to.
pub(crate) unsafe extern "C" fn page_mkwrite(v: *mut c::vm_fault) -> c::vm_fault_t {
    // SAFETY: the VFS passes a fault in a mapping of a file of ours, and keeps a reference to the folio.
    unsafe {
        let file = c::vexfs_vmf_file(v);
        let inode = Inode::new(c::vexfs_file_inode(file));
        c::vexfs_start_pagefault(inode.sb());
        c::file_update_time(file);
        let r = match make_writable(inode, v) {
            // Once more, as a write does it.
            Err(ENOSPC) => {
                make_room(inode);
                make_writable(inode, v)
            }
            r => r,
        };
        c::vexfs_end_pagefault(inode.sb());
        r.unwrap_or(c::VEXFS_VM_FAULT_SIGBUS)
    }
}

/// Sets space aside for the folio of a fault, then makes it dirty, and leaves it locked.
unsafe fn make_writable(inode: Inode, v: *mut c::vm_fault) -> KResult<c::vm_fault_t> {
    // SAFETY: as for `page_mkwrite`.
    unsafe {
        inode.fs().up()?;
        let mut p = null_mut();
        c::vexfs_vmf_folio(v, &mut p);
        let f = Folio::new(p);
        if !c::vexfs_folio_lock(p, inode.raw()) {
            // It is no longer in the file.
            return Ok(c::VEXFS_VM_FAULT_NOPAGE);
        }
        let _nofs = NoFs::enter();
        f.wait_writeback();
        if let Err(e) = reserve(inode, f) {
            f.unlock();
            return Err(e);
        }
        // Dirty before it is let go, so that a freeze finds it.
        f.mark_dirty();
        Ok(c::VEXFS_VM_FAULT_LOCKED)
    }
}

/// Writes all dirty pages of a file and waits.
pub(crate) fn flush(inode: Inode) -> KResult<()> {
    // SAFETY: a live mapping.
    ok(unsafe { c::filemap_write_and_wait_range(inode.mapping(), 0, i64::MAX) })
}
