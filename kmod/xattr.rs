// SPDX-License-Identifier: GPL-2.0-only
//! Extended attributes and POSIX ACLs. The core keeps ACLs as attributes and the mode in step with them; the VFS
//! decides with its cached copies.

use crate::bindings as c;
use crate::vfs::{
    bytes, code, count, err_ptr, ok, Dentry, Inode, KResult, Table, ENODATA, ENOMEM, EOPNOTSUPP, EPERM, ERANGE,
};
use crate::{control, inode};
use alloc::vec::Vec;
use core::ffi::CStr;
use core::ptr::{addr_of_mut, null, null_mut};
use kernel::ffi::{c_char, c_int, c_void};
use vexfs_core::mem;
use vexfs_core::op::{Op, SetAttr};

const CAP_SYS_ADMIN: c_int = 21;
const S_ISGID: u32 = 0o2000;
const ECHILD: i32 = 10;

const fn handler(prefix: &'static CStr) -> Table<c::xattr_handler> {
    Table(c::xattr_handler { prefix: prefix.as_ptr().cast(), get: Some(get), set: Some(set), ..crate::vfs::blank() })
}

static USER: Table<c::xattr_handler> = handler(c"user.");
static TRUSTED: Table<c::xattr_handler> = handler(c"trusted.");
static SECURITY: Table<c::xattr_handler> = handler(c"security.");
static HANDLERS: Table<[*const c::xattr_handler; 4]> = Table([USER.get(), TRUSTED.get(), SECURITY.get(), null()]);

/// For the superblock.
pub(crate) fn handlers() -> *const *const c::xattr_handler {
    HANDLERS.0.as_ptr()
}

/// Whole name of an attribute.
unsafe fn full(h: *const c::xattr_handler, name: *const c_char) -> KResult<Vec<u8>> {
    // SAFETY: the VFS passes a handler of ours and the rest of a name that has the handler's prefix.
    mem::to_vec(unsafe { bytes(c::xattr_full_name(h, name)) }).map_err(|_| ENOMEM)
}

/// Gives bytes to who asked with room for `size`; 0 asks for the length.
unsafe fn give(v: &[u8], buffer: *mut c_void, size: usize) -> KResult<usize> {
    if size == 0 {
        return Ok(v.len());
    }
    if v.len() > size {
        return Err(ERANGE);
    }
    // SAFETY: the caller passes a buffer of `size` bytes.
    unsafe { core::ptr::copy_nonoverlapping(v.as_ptr(), buffer.cast(), v.len()) };
    Ok(v.len())
}

unsafe extern "C" fn get(
    h: *const c::xattr_handler,
    _d: *mut c::dentry,
    i: *mut c::inode,
    name: *const c_char,
    buffer: *mut c_void,
    size: usize,
) -> c_int {
    // SAFETY: the VFS passes an inode of ours, a name and a buffer.
    count(unsafe {
        let i = Inode::new(i);
        if control::is_control(i.ino()) {
            Err(ENODATA)
        } else {
            full(h, name)
                .and_then(|name| i.fs().bytes(Op::GetXattr { ino: i.ino(), name }))
                .and_then(|v| give(&v, buffer, size))
        }
    }) as c_int
}

unsafe extern "C" fn set(
    h: *const c::xattr_handler,
    _idmap: *mut c::mnt_idmap,
    _d: *mut c::dentry,
    i: *mut c::inode,
    name: *const c_char,
    value: *const c_void,
    size: usize,
    flags: c_int,
) -> c_int {
    // SAFETY: the VFS passes a locked inode of ours, a name and a value.
    code(unsafe {
        let i = Inode::new(i);
        full(h, name).and_then(|name| {
            let value = (!value.is_null()).then(|| core::slice::from_raw_parts(value.cast::<u8>(), size));
            change(i, name, value, flags as u32)
        })
    })
}

/// Sets or removes an attribute.
fn change(i: Inode, name: Vec<u8>, value: Option<&[u8]>, flags: u32) -> KResult<()> {
    if control::is_control(i.ino()) {
        return Err(EPERM);
    }
    let ino = i.ino();
    let op = match value {
        Some(v) => Op::SetXattr { ino, name, value: mem::to_vec(v).map_err(|_| ENOMEM)?, flags },
        None => Op::RemoveXattr { ino, name },
    };
    i.fs().change(None, op)?;
    inode::reload(i);
    Ok(())
}

/// listxattr(2).
pub(crate) unsafe extern "C" fn list(d: *mut c::dentry, buffer: *mut c_char, size: usize) -> isize {
    // SAFETY: the VFS passes a positive dentry of ours and a buffer.
    count(unsafe {
        Dentry::new(d).positive().and_then(|i| {
            let all = i.fs().bytes(Op::ListXattr { ino: i.ino() })?;
            if c::capable(CAP_SYS_ADMIN) {
                return give(&all, buffer.cast(), size);
            }
            // `trusted.` is shown to the superuser only, as everywhere.
            let mut shown = Vec::new();
            for n in all.split_inclusive(|b| *b == 0).filter(|n| !n.starts_with(b"trusted.")) {
                mem::extend(&mut shown, n).map_err(|_| ENOMEM)?;
            }
            give(&shown, buffer.cast(), size)
        })
    })
}

fn acl_name(kind: c_int) -> &'static [u8] {
    match kind as u32 {
        c::ACL_TYPE_ACCESS => b"system.posix_acl_access",
        _ => b"system.posix_acl_default",
    }
}

fn users() -> *mut c::user_namespace {
    addr_of_mut!(c::init_user_ns)
}

/// The ACL of an inode, for the VFS's cache.
pub(crate) unsafe extern "C" fn get_acl(i: *mut c::inode, kind: c_int, rcu: bool) -> *mut c::posix_acl {
    if rcu {
        // It may have to be read.
        return err_ptr(ECHILD);
    }
    // SAFETY: the VFS passes an inode of ours.
    unsafe {
        let i = Inode::new(i);
        let found = mem::to_vec(acl_name(kind)).map_err(|_| ENOMEM);
        match found.and_then(|name| i.fs().bytes(Op::GetXattr { ino: i.ino(), name })) {
            Ok(v) => c::posix_acl_from_xattr(users(), v.as_ptr().cast(), v.len()),
            Err(ENODATA | EOPNOTSUPP) => null_mut(),
            Err(e) => err_ptr(e),
        }
    }
}

/// Sets or removes an ACL.
pub(crate) unsafe extern "C" fn set_acl(
    idmap: *mut c::mnt_idmap,
    d: *mut c::dentry,
    acl: *mut c::posix_acl,
    kind: c_int,
) -> c_int {
    // SAFETY: the VFS passes a dentry of ours whose inode is locked, and an ACL or none.
    code(unsafe {
        Dentry::new(d).positive().and_then(|i| {
            let name = mem::to_vec(acl_name(kind)).map_err(|_| ENOMEM)?;
            if acl.is_null() {
                change(i, name, None, 0)?;
                c::set_cached_acl(i.raw(), kind, null_mut());
                return Ok(());
            }
            let need = c::posix_acl_to_xattr(users(), acl, null_mut(), 0);
            ok(need)?;
            let mut v: Vec<u8> = mem::filled(need as usize, 0).map_err(|_| ENOMEM)?;
            ok(c::posix_acl_to_xattr(users(), acl, v.as_mut_ptr().cast(), v.len()))?;
            // What the mode says is kept in the mode only; the core does the same.
            let (mut mode, mut kept) = (i.mode() as c::umode_t, acl);
            if kind as u32 == c::ACL_TYPE_ACCESS {
                ok(c::posix_acl_update_mode(idmap, i.raw(), &mut mode, &mut kept))?;
            }
            change(i, name, Some(&v), 0)?;
            if i.mode() & S_ISGID != 0 && u32::from(mode) & S_ISGID == 0 {
                // Whoever is not in the group does not give its rights away.
                let set = SetAttr { mode: Some(u32::from(mode) & 0o7777), ..SetAttr::default() };
                i.fs().change(None, Op::SetAttr { ino: i.ino(), set })?;
                inode::reload(i);
            }
            c::set_cached_acl(i.raw(), kind, kept);
            Ok(())
        })
    })
}
