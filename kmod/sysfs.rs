// SPDX-License-Identifier: GPL-2.0-only
//! /sys/fs/vexfs/DEVICE/: figures of a mount, one file each.

use crate::bindings as c;
use crate::env;
use crate::sb::Fs;
use crate::sync::{Completion, Opaque};
use crate::vfs::{blank, bytes, KResult, Table, EIO, ENOMEM};
use core::ffi::CStr;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use kernel::ffi::c_char;
use vexfs_core::engine::State;

static ROOT: AtomicPtr<c::kobject> = AtomicPtr::new(null_mut());

/// Makes /sys/fs/vexfs.
pub(crate) fn make_root() -> KResult<()> {
    // SAFETY: fs_kobj exists from early boot on.
    let k = unsafe { c::kobject_create_and_add(c"vexfs".as_ptr().cast(), c::fs_kobj) };
    if k.is_null() {
        return Err(ENOMEM);
    }
    ROOT.store(k, Ordering::Release);
    Ok(())
}

pub(crate) fn drop_root() {
    // SAFETY: made by `make_root`, without children by now.
    unsafe { c::kobject_put(ROOT.swap(null_mut(), Ordering::AcqRel)) }
}

/// The folder of a mount.
#[repr(C)]
pub(crate) struct Object {
    kobj: Opaque<c::kobject>,
    fs: AtomicPtr<Fs>,
    there: AtomicBool,
    gone: Completion,
}

const fn attribute(name: &'static CStr) -> Table<c::attribute> {
    Table(c::attribute { name: name.as_ptr().cast(), mode: 0o444, ..blank() })
}

macro_rules! attributes {
    ($($id:ident $name:literal),*) => {
        $(static $id: Table<c::attribute> = attribute($name);)*
        static ALL: Table<[*const c::attribute; [$($name),*].len() + 1]> = Table([$($id.get(),)* null()]);
    };
}

attributes!(
    READS c"reads", WRITES c"writes", FLUSHES c"flushes", LOG_GROUPS c"log_groups", LOG_BYTES c"log_bytes",
    CHECKPOINTS c"checkpoints", TRANSACTIONS c"transactions", RERUNS c"reruns", HEALED c"healed",
    CACHED c"cached_nodes", VECTORS c"vector_bytes", VREADS c"vector_reads", DIRTY c"dirty_nodes", FREE c"free_blocks", REPLAYED c"replayed_groups",
    RESERVED c"reserved_blocks", INFLIGHT c"requests", MEMORY c"module_bytes", STATE c"state", KERNELS c"distance_kernels"
);

static GROUP: Table<c::attribute_group> =
    Table(c::attribute_group { attrs: ALL.0.as_ptr().cast_mut().cast(), ..blank() });

static GROUPS: Table<[*const c::attribute_group; 2]> = Table([GROUP.get(), null()]);
static OPS: Table<c::sysfs_ops> = Table(c::sysfs_ops { show: Some(show), ..blank() });
static TYPE: Table<c::kobj_type> = Table(c::kobj_type {
    release: Some(release),
    sysfs_ops: OPS.get(),
    default_groups: GROUPS.0.as_ptr().cast_mut(),
    ..blank()
});

impl Object {
    pub(crate) const fn new() -> Object {
        Object {
            kobj: Opaque::zeroed(),
            fs: AtomicPtr::new(null_mut()),
            there: AtomicBool::new(false),
            gone: Completion::new(),
        }
    }

    /// Shows the figures of a mount, of which this is a part.
    pub(crate) fn add(&self, fs: &Fs) -> KResult<()> {
        self.gone.init();
        self.fs.store(core::ptr::from_ref(fs).cast_mut(), Ordering::Release);
        // SAFETY: memory that stays until `remove` has waited for the release; the tables are statics.
        let r = unsafe {
            let name = c::vexfs_sb_id(fs.sb());
            c::vexfs_kobject_add(self.kobj.get(), TYPE.get(), ROOT.load(Ordering::Acquire), name)
        };
        self.there.store(true, Ordering::Release);
        crate::vfs::ok(r)
    }

    /// Takes them away and waits until nobody looks at them.
    pub(crate) fn remove(&self) {
        if self.there.swap(false, Ordering::AcqRel) {
            // SAFETY: initialised by `add`, which is so even if it failed.
            unsafe { c::kobject_put(self.kobj.get()) };
            self.gone.wait();
        }
    }
}

unsafe extern "C" fn release(k: *mut c::kobject) {
    // SAFETY: the first member of an object that waits for this.
    unsafe { (*k.cast::<Object>()).gone.complete() }
}

unsafe extern "C" fn show(k: *mut c::kobject, a: *mut c::attribute, out: *mut c_char) -> isize {
    // SAFETY: an object that is there (sysfs keeps it while a file is read) and one of the attributes; `out` is a page.
    unsafe {
        let fs = &*(*k.cast::<Object>()).fs.load(Ordering::Acquire);
        let s = fs.stats();
        let n = match bytes((*a).name) {
            b"reads" => s.reads,
            b"writes" => s.writes,
            b"flushes" => s.flushes,
            b"log_groups" => s.log_groups,
            b"log_bytes" => s.log_bytes,
            b"checkpoints" => s.checkpoints,
            b"transactions" => s.transactions,
            b"reruns" => s.reruns,
            b"healed" => s.healed,
            b"cached_nodes" => s.cached_nodes,
            b"vector_bytes" => s.vector_bytes,
            b"vector_reads" => s.vector_reads,
            b"dirty_nodes" => s.dirty_nodes,
            b"free_blocks" => s.free_blocks,
            b"replayed_groups" => s.replayed_groups,
            b"reserved_blocks" => fs.host().reserved(),
            b"requests" => fs.host().bios().inflight() as u64,
            b"module_bytes" => env::allocated() as u64,
            b"state" => {
                let text = match fs.host().state() {
                    State::Opening => c"opening\n",
                    State::Ready => c"ready\n",
                    State::Failed(_) => c"failed\n",
                    State::Aborted => c"aborted\n",
                    State::Closed => c"closed\n",
                };
                return c::sysfs_emit(out, text.as_ptr().cast()) as isize;
            }
            b"distance_kernels" => {
                let text = if env::kernels_name() == "avx2" { c"avx2\n" } else { c"scalar\n" };
                return c::sysfs_emit(out, text.as_ptr().cast()) as isize;
            }
            _ => return -(EIO as isize),
        };
        c::sysfs_emit(out, c"%llu\n".as_ptr().cast(), n) as isize
    }
}
