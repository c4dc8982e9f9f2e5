// SPDX-License-Identifier: GPL-2.0-only
//! Mounting: the file system type, mount options, remounting.

use crate::bindings as c;
use crate::host::HostOptions;
use crate::sb::{self, Fs};
use crate::vfs::{blank, bytes, check, code, KResult, Table, EINVAL, ENOMEM, EROFS};
use core::ffi::CStr;
use core::ptr::{addr_of_mut, null_mut, NonNull};
use kernel::ffi::{c_int, c_void};
use vexfs_core::mem;

/// The kernel's "not one of mine".
const ENOPARAM: c_int = -519;
/// What `discard` means without a number.
pub(crate) const DISCARD_SECONDS: u32 = 300;
const NAME: &CStr = c"vexfs";

#[allow(improper_ctypes)]
extern "C" {
    static mut __this_module: c::module;
}

/// The module, as owner of what holds it.
pub(crate) const fn this_module() -> *mut c::module {
    addr_of_mut!(__this_module)
}

/// What `errors=` says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// Go on: changes fail.
    Continue,
    /// The mount becomes read-only.
    ReadOnly,
    /// The machine stops.
    Panic,
}

/// Options of a mount.
#[derive(Clone, Copy)]
pub(crate) struct MountOptions {
    /// Bytes of tree nodes and vectors that are kept in memory.
    pub(crate) cache: u64,
    /// Seconds after which changes are durable at the latest.
    pub(crate) commit: u32,
    /// What to do when a write or flush has failed.
    pub(crate) errors: OnError,
    /// Discard free blocks every so many seconds, if there were changes; 0: never.
    pub(crate) discard: u32,
}

impl MountOptions {
    fn new() -> MountOptions {
        // SAFETY: reads a number that the kernel counts.
        let memory = unsafe { c::vexfs_total_memory() };
        MountOptions { cache: (memory / 4).max(16 << 20), commit: 5, errors: OnError::ReadOnly, discard: 0 }
    }

    pub(crate) fn host(&self, read_only: bool) -> HostOptions {
        HostOptions {
            read_only,
            cache_bytes: self.cache as usize,
            log_bytes: 64 << 20,
            commit_seconds: self.commit,
            discard: self.discard,
        }
    }

    /// Takes an option in. False: it is none of ours.
    fn parse(&mut self, key: &[u8], value: Option<&[u8]>) -> KResult<bool> {
        match (key, value) {
            (b"cache", Some(v)) => self.cache = size(v)?.clamp(1 << 20, 1 << 40),
            (b"commit", Some(v)) => self.commit = u32::try_from(size(v)?).map_err(|_| EINVAL)?.clamp(1, 3600),
            (b"errors", Some(b"continue")) => self.errors = OnError::Continue,
            (b"errors", Some(b"remount-ro")) => self.errors = OnError::ReadOnly,
            (b"errors", Some(b"panic")) => self.errors = OnError::Panic,
            (b"discard", None) => self.discard = DISCARD_SECONDS,
            (b"discard", Some(v)) => self.discard = u32::try_from(size(v)?).map_err(|_| EINVAL)?.clamp(1, 1 << 20),
            (b"nodiscard", None) => self.discard = 0,
            (b"cache" | b"commit" | b"errors" | b"nodiscard", _) => return Err(EINVAL),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A number with K, M or G behind it.
fn size(text: &[u8]) -> KResult<u64> {
    let (digits, unit) = match text.split_last() {
        Some((b'k' | b'K', rest)) => (rest, 1 << 10),
        Some((b'm' | b'M', rest)) => (rest, 1 << 20),
        Some((b'g' | b'G', rest)) => (rest, 1 << 30),
        _ => (text, 1u64),
    };
    if digits.is_empty() {
        return Err(EINVAL);
    }
    let mut n = 0u64;
    for d in digits {
        let d = d.checked_sub(b'0').filter(|d| *d < 10).ok_or(EINVAL)?;
        n = n.checked_mul(10).and_then(|n| n.checked_add(u64::from(d))).ok_or(EINVAL)?;
    }
    n.checked_mul(unit).ok_or(EINVAL)
}

static TYPE: TypeCell = TypeCell(core::cell::UnsafeCell::new(c::file_system_type {
    name: NAME.as_ptr().cast(),
    fs_flags: c::FS_REQUIRES_DEV as c_int,
    init_fs_context: Some(init_fs_context),
    kill_sb: Some(kill_sb),
    owner: this_module(),
    ..blank()
}));

struct TypeCell(core::cell::UnsafeCell<c::file_system_type>);
// SAFETY: the kernel links it into its list under its own lock; nobody else touches it.
unsafe impl Sync for TypeCell {}

/// Makes the type known.
pub(crate) fn register() -> KResult<()> {
    // SAFETY: a static, registered once and unregistered before the module goes.
    crate::vfs::ok(unsafe { c::register_filesystem(TYPE.0.get()) })
}

pub(crate) fn unregister() {
    // SAFETY: registered by `register`.
    unsafe { c::unregister_filesystem(TYPE.0.get()) };
}

static CONTEXT: Table<c::fs_context_operations> = Table(c::fs_context_operations {
    free: Some(free),
    parse_param: Some(parse_param),
    get_tree: Some(get_tree),
    reconfigure: Some(reconfigure),
    ..blank()
});

unsafe fn options<'a>(fc: *mut c::fs_context) -> Option<&'a mut MountOptions> {
    // SAFETY: set by `init_fs_context`, freed by `free`.
    unsafe { (*fc).fs_private.cast::<MountOptions>().as_mut() }
}

unsafe extern "C" fn init_fs_context(fc: *mut c::fs_context) -> c_int {
    // SAFETY: a fresh context of ours; on a remount `root` is set and its superblock has our state.
    unsafe {
        let root = (*fc).root;
        let now = match root.is_null() {
            true => MountOptions::new(),
            false => Fs::of((*root).d_sb).options(),
        };
        let Ok(o) = mem::Box::try_new(now) else { return -ENOMEM };
        (*fc).fs_private = mem::Box::into_raw(o).as_ptr().cast();
        (*fc).ops = CONTEXT.get();
    }
    0
}

unsafe extern "C" fn free(fc: *mut c::fs_context) {
    // SAFETY: what `init_fs_context` put there.
    unsafe {
        if let Some(p) = NonNull::new((*fc).fs_private.cast::<MountOptions>()) {
            (*fc).fs_private = null_mut::<c_void>();
            drop(mem::Box::from_raw(p));
        }
    }
}

unsafe extern "C" fn parse_param(fc: *mut c::fs_context, p: *mut c::fs_parameter) -> c_int {
    // SAFETY: the kernel passes a context of ours and a parameter with a key; a string parameter has a string.
    unsafe {
        let Some(o) = options(fc) else { return -EINVAL };
        let string = (*p).type_() == c::fs_value_type_fs_value_is_string;
        let value = (string && !(*p).__bindgen_anon_1.string.is_null()).then(|| bytes((*p).__bindgen_anon_1.string));
        match o.parse(bytes((*p).key), value) {
            Ok(true) => 0,
            Ok(false) => ENOPARAM,
            Err(e) => -e,
        }
    }
}

unsafe extern "C" fn get_tree(fc: *mut c::fs_context) -> c_int {
    // SAFETY: a context of ours.
    unsafe { c::get_tree_bdev(fc, Some(fill_super)) }
}

unsafe extern "C" fn fill_super(s: *mut c::super_block, fc: *mut c::fs_context) -> c_int {
    // SAFETY: a fresh superblock with its device.
    code(unsafe {
        match options(fc) {
            Some(o) => sb::fill(s, *o),
            None => Err(EINVAL),
        }
    })
}

unsafe extern "C" fn reconfigure(fc: *mut c::fs_context) -> c_int {
    // SAFETY: a context of ours for a mounted superblock, which is locked.
    code(unsafe {
        let s = (*(*fc).root).d_sb;
        let fs = Fs::of(s);
        let Some(new) = options(fc) else { return -EINVAL };
        let read_only = u64::from((*fc).sb_flags) & c::VEXFS_SB_RDONLY as u64 != 0;
        let was = c::vexfs_sb_rdonly(s);
        if !read_only && was {
            if fs.host().is_aborted() {
                // A write failed: only a new mount can.
                return -EROFS;
            }
            if fs.host().read_only() {
                if let Err(e) = fs.host().become_writable() {
                    return -e;
                }
            }
        }
        if read_only && !was {
            fs.host().set_quiet(true);
            if let Err(e) = fs.settle() {
                fs.host().set_quiet(false);
                return -e;
            }
        }
        if !read_only {
            fs.host().set_quiet(false);
        }
        fs.set_options(*new);
        Ok(())
    })
}

unsafe extern "C" fn kill_sb(s: *mut c::super_block) {
    // SAFETY: a superblock made by `get_tree_bdev`.
    unsafe { c::kill_block_super(s) };
}

/// The root of a mount as a dentry.
pub(crate) unsafe fn make_root(s: *mut c::super_block, root: *mut c::inode) -> KResult<()> {
    // SAFETY: a reference to the root's inode, which d_make_root takes over, and drops if it fails.
    unsafe {
        let d = check(c::d_make_root(root))?;
        if d.is_null() {
            return Err(ENOMEM);
        }
        (*s).s_root = d;
    }
    Ok(())
}
