// SPDX-License-Identifier: GPL-2.0-only
//! Carries the core's requests out as bios. Owns a request from its submission until the worker has taken it from
//! the list of finished ones; memory for it comes from a pool of the mount, so that submitting cannot fail.

use crate::bindings as c;
use crate::env;
use crate::host::Host;
use crate::sync::Opaque;
use core::mem::{offset_of, ManuallyDrop};
use core::ptr::{addr_of_mut, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use vexfs_core::io::{Io, IoError, IoId, IoKind};
use vexfs_core::mem::{Box, Buf};

/// 512-byte sectors of a block.
const SECTORS: u64 = 8;
const BLOCK: usize = 4096;
/// Requests that can always be made, however short memory is.
const POOL: u32 = 64;
/// Most segments of a bio.
const SEGMENTS: usize = 256;

/// A request under way: what the pool puts in front of each bio.
#[repr(C)]
pub(crate) struct Req {
    next: *mut Req,
    host: *const Host,
    id: IoId,
    kind: IoKind,
    status: u8,
    buf: ManuallyDrop<Buf>,
    bio: c::bio,
}

/// The device, the pool and the finished requests of a mount.
pub(crate) struct Bios {
    bdev: *mut c::block_device,
    pool: Opaque<c::bio_set>,
    finished: AtomicPtr<Req>,
    inflight: AtomicUsize,
}

impl Bios {
    #[inline(never)]
    pub(crate) fn new(bdev: *mut c::block_device) -> Result<Box<Bios>, i32> {
        let finished = AtomicPtr::new(null_mut());
        Box::try_new(Bios { bdev, pool: Opaque::zeroed(), finished, inflight: AtomicUsize::new(0) }).map_err(|_| 12)
    }

    /// Makes the pool, where it stays.
    pub(crate) fn init(&self) -> Result<(), i32> {
        let pad = offset_of!(Req, bio) as u32;
        // SAFETY: memory for a pool that nobody uses yet; flag 1 is BIOSET_NEED_BVECS.
        match unsafe { c::bioset_init(self.pool.get(), POOL, pad, 1) } {
            0 => Ok(()),
            e => Err(-e),
        }
    }

    /// Gives the pool back; no request may be under way.
    pub(crate) fn exit(&self) {
        // SAFETY: made by `init` (or all zeros, which is fine too).
        unsafe { c::bioset_exit(self.pool.get()) }
    }

    /// Whole blocks of the device.
    pub(crate) fn blocks(&self) -> u64 {
        // SAFETY: a device that this mount holds open.
        unsafe { c::vexfs_bdev_bytes(self.bdev) / BLOCK as u64 }
    }

    /// Requests that are under way or not yet taken by the worker.
    pub(crate) fn inflight(&self) -> usize {
        self.inflight.load(Ordering::Acquire)
    }

    fn alloc(&self, kind: IoKind, segments: usize) -> *mut c::bio {
        let opf = match kind {
            IoKind::Read => c::VEXFS_REQ_READ,
            IoKind::Write => c::VEXFS_REQ_WRITE,
            IoKind::WriteDurable => c::VEXFS_REQ_WRITE_DURABLE,
            IoKind::Flush => c::VEXFS_REQ_FLUSH,
            IoKind::Discard => c::VEXFS_REQ_DISCARD,
        };
        // SAFETY: a pool of this mount; with GFP_NOIO it waits for memory and never fails. Bios that were taken
        // before are submitted, so the pool fills again.
        unsafe { c::vexfs_bio_alloc(self.bdev, segments.min(SEGMENTS) as u16, opf, self.pool.get()) }
    }

    /// Submits a request; it ends up in the list of finished ones.
    pub(crate) fn submit(&self, host: &Host, io: Io) {
        self.inflight.fetch_add(1, Ordering::AcqRel);
        let pages = io.buf.len() / BLOCK;
        // SAFETY: a device that this mount holds open.
        let useless = io.kind == IoKind::Discard && !unsafe { c::vexfs_bdev_discard(self.bdev) };
        let mut bio = self.alloc(io.kind, if io.kind == IoKind::Discard { 0 } else { pages });
        let mut sector = io.block.wrapping_mul(SECTORS);
        let base = io.buf.as_ptr().cast_mut();
        let mut at = 0;
        // SAFETY: the bio is ours until it is submitted. Each page of the buffer is alive and stays where it is, because
        // the request owns the buffer. A bio that is full is chained to a fresh one, of which the last carries the request.
        unsafe {
            (*bio).bi_iter.bi_sector = sector;
            if io.kind == IoKind::Discard {
                (*bio).bi_iter.bi_size =
                    (io.count as usize).saturating_mul(BLOCK).min(u32::MAX as usize & !(BLOCK - 1)) as u32;
            }
            while at < pages {
                let page = c::vexfs_page(base.add(at * BLOCK).cast());
                if c::bio_add_page(bio, page, BLOCK as u32, 0) == BLOCK as i32 {
                    at += 1;
                    sector += SECTORS;
                    continue;
                }
                let more = self.alloc(io.kind, pages - at);
                (*more).bi_iter.bi_sector = sector;
                c::bio_chain(bio, more);
                c::submit_bio(bio);
                bio = more;
            }
            let req = bio.cast::<u8>().sub(offset_of!(Req, bio)).cast::<Req>();
            addr_of_mut!((*req).next).write(null_mut());
            addr_of_mut!((*req).host).write(host);
            addr_of_mut!((*req).id).write(io.id);
            addr_of_mut!((*req).kind).write(io.kind);
            addr_of_mut!((*req).status).write(0);
            addr_of_mut!((*req).buf).write(ManuallyDrop::new(io.buf));
            if useless {
                end(bio);
                return;
            }
            (*bio).bi_end_io = Some(end);
            c::submit_bio(bio);
        }
    }

    /// Takes the finished requests.
    pub(crate) fn take(&self) -> Finished<'_> {
        Finished { bios: self, head: self.finished.swap(null_mut(), Ordering::AcqRel) }
    }
}

/// A bio is done. Runs in any context: only notes it and wakes the worker.
unsafe extern "C" fn end(bio: *mut c::bio) {
    // SAFETY: a bio that `submit` made, with the request in front of it and a host that outlives all its requests
    // (`inflight` is counted down last).
    unsafe {
        let req = bio.cast::<u8>().sub(offset_of!(Req, bio)).cast::<Req>();
        (*req).status = (*bio).bi_status;
        let host = &*(*req).host;
        let list = &host.bios().finished;
        let mut head = list.load(Ordering::Relaxed);
        loop {
            (*req).next = head;
            match list.compare_exchange_weak(head, req, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        host.wake_worker();
        host.bios().inflight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Finished requests.
pub(crate) struct Finished<'a> {
    bios: &'a Bios,
    head: *mut Req,
}

impl Finished<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }
}

impl Iterator for Finished<'_> {
    type Item = (IoId, IoKind, Result<(), IoError>, Buf);

    fn next(&mut self) -> Option<Self::Item> {
        let _ = self.bios;
        if self.head.is_null() {
            return None;
        }
        // SAFETY: the list is ours alone since `take`; each request is taken once, and its bio is put after that.
        unsafe {
            let req = self.head;
            self.head = (*req).next;
            let (id, kind, status) = ((*req).id, (*req).kind, (*req).status);
            let buf = ManuallyDrop::take(&mut (*req).buf);
            c::bio_put(addr_of_mut!((*req).bio));
            Some((id, kind, if status == 0 { Ok(()) } else { Err(IoError) }, buf))
        }
    }
}

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        for _ in self.by_ref() {
            env::resched();
        }
    }
}

/// Submits together what is submitted while it lives.
pub(crate) struct Plug(Opaque<c::blk_plug>);

impl Plug {
    pub(crate) const fn new() -> Plug {
        Plug(Opaque::zeroed())
    }

    pub(crate) fn start(&mut self) {
        // SAFETY: stays where it is until `finish`, which the same task calls.
        unsafe { c::blk_start_plug(self.0.get()) }
    }

    pub(crate) fn finish(&mut self) {
        // SAFETY: started by this task.
        unsafe { c::blk_finish_plug(self.0.get()) }
    }
}
