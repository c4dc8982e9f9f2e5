// SPDX-License-Identifier: GPL-2.0-only
//! POSIX ACLs in the binary form in which the kernel passes and stores them: a version (u32, 2), then entries
//! of a tag (u16), permissions (u16) and an id (u32), in the order of their tags. Promises that a stored
//! access ACL and the mode bits agree.

use crate::error::{Error, Step};
use crate::format::Wire;
use crate::mem;
use crate::op::Cred;
use crate::txn::Txn;
use alloc::vec::Vec;

/// The attribute with the ACL of an inode.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute with the ACL that a directory gives to what is made in it.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One entry.
#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    perm: u32,
    id: u32,
}

fn entries(acl: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    acl.get(HEAD..).unwrap_or(&[]).chunks_exact(ENTRY).map(|b| Entry {
        tag: u16::get(b, 0).unwrap_or(0),
        perm: u32::from(u16::get(b, 2).unwrap_or(0)),
        id: u32::get(b, 4).unwrap_or(0),
    })
}

/// Changes the permissions of the entries with `f(tag, permissions)`.
fn update(acl: &mut [u8], mut f: impl FnMut(u16, u32) -> u32) {
    for b in acl.get_mut(HEAD..).unwrap_or(&mut []).chunks_exact_mut(ENTRY) {
        let (Some(tag), Some(perm)) = (u16::get(b, 0), u16::get(b, 2)) else { continue };
        // Three bits: always fits, and `b` has eight bytes.
        let _ = ((f(tag, u32::from(perm)) & 7) as u16).put(b, 2);
    }
}

/// Checks an ACL as the kernel does. An ACL without entries is valid: it removes.
pub fn check(acl: &[u8]) -> Result<(), Error> {
    if u32::get(acl, 0) != Some(VERSION) {
        return Err(if acl.len() < HEAD { Error::Invalid } else { Error::NotSupported });
    }
    let body = acl.len().saturating_sub(HEAD);
    if body % ENTRY != 0 {
        return Err(Error::Invalid);
    }
    if body == 0 {
        return Ok(());
    }
    // What may come next: tags are in this order, named ones may repeat.
    let mut state = USER_OBJ;
    let mut needs_mask = false;
    for e in entries(acl) {
        if e.perm & !7 != 0 {
            return Err(Error::Invalid);
        }
        state = match (e.tag, state) {
            (USER_OBJ, USER_OBJ) => USER,
            (USER, USER) => {
                needs_mask = true;
                USER
            }
            (GROUP_OBJ, USER) => GROUP,
            (GROUP, GROUP) => {
                needs_mask = true;
                GROUP
            }
            (MASK, GROUP) => OTHER,
            (OTHER, OTHER) => 0,
            (OTHER, GROUP) if !needs_mask => 0,
            _ => return Err(Error::Invalid),
        };
    }
    if state == 0 {
        Ok(())
    } else {
        Err(Error::Invalid)
    }
}

/// Whether the ACL has no entries.
pub fn is_empty(acl: &[u8]) -> bool {
    acl.len() <= HEAD
}

/// The permission bits that the ACL stands for, and whether it says more than they can.
pub fn mode_of(acl: &[u8]) -> (u32, bool) {
    let (mut mode, mut more) = (0, false);
    for e in entries(acl) {
        match e.tag {
            USER_OBJ => mode |= (e.perm & 7) << 6,
            GROUP_OBJ => mode |= (e.perm & 7) << 3,
            OTHER => mode |= e.perm & 7,
            MASK => {
                mode = (mode & !0o070) | ((e.perm & 7) << 3);
                more = true;
            }
            _ => more = true,
        }
    }
    (mode, more)
}

/// Whether the ACL has a mask: then the group bits of the mode are its mask.
fn has_mask(acl: &[u8]) -> bool {
    entries(acl).any(|e| e.tag == MASK)
}

/// Makes the ACL agree with a mode that chmod sets.
fn set_mode(acl: &mut [u8], mode: u32) {
    let group = if has_mask(acl) { MASK } else { GROUP_OBJ };
    update(acl, |tag, perm| match tag {
        USER_OBJ => mode >> 6,
        OTHER => mode,
        _ if tag == group => mode >> 3,
        _ => perm,
    });
}

/// Cuts the ACL that a new inode gets down to the mode that was asked for, and returns the mode that results.
fn restrict(acl: &mut [u8], mode: u32) -> u32 {
    let group = if has_mask(acl) { MASK } else { GROUP_OBJ };
    update(acl, |tag, perm| match tag {
        USER_OBJ => perm & (mode >> 6),
        OTHER => perm & mode,
        _ if tag == group => perm & (mode >> 3),
        _ => perm,
    });
    (mode & !0o777) | mode_of(acl).0
}

/// What a new inode inherits from the default ACL of its directory.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Its access ACL, if mode bits cannot say it.
    pub access: Option<Vec<u8>>,
    /// A directory's default ACL.
    pub default: Option<Vec<u8>>,
}

/// What an inode made in `dir` inherits; changes `mode` accordingly.
#[inline(never)]
pub fn inherit(t: &Txn<'_>, dir: u64, mode: &mut u32) -> Step<Inherited> {
    let mut out = Inherited::default();
    let Some(acl) = super::xattr::value(t, dir, DEFAULT)? else { return Ok(out) };
    if is_empty(&acl) {
        return Ok(out);
    }
    let mut access = mem::to_vec(&acl)?;
    *mode = restrict(&mut access, *mode);
    if mode_of(&access).1 {
        out.access = Some(access);
    }
    if super::mode::is_dir(*mode) {
        out.default = Some(acl);
    }
    Ok(out)
}

/// Carries a chmod over to the access ACL of `ino`, if it has one.
#[inline(never)]
pub fn chmod(t: &mut Txn<'_>, ino: u64, mode: u32) -> Step<()> {
    if let Some(mut acl) = super::xattr::value(t, ino, ACCESS)? {
        set_mode(&mut acl, mode);
        super::xattr::put(t, ino, ACCESS, &acl)?;
    }
    Ok(())
}

/// Whether `who` is in the group `gid`.
pub fn in_group(who: &Cred, gid: u32) -> bool {
    who.gid == gid || who.groups.contains(&gid)
}

/// Whether the ACL of an inode of `uid` and `gid` lets `who` do all of `want`.
pub fn allows(acl: &[u8], uid: u32, gid: u32, who: &Cred, want: u32) -> bool {
    let mask = entries(acl).find(|e| e.tag == MASK).map_or(7, |e| e.perm);
    let mut in_some_group = false;
    for e in entries(acl) {
        let matches = match e.tag {
            USER_OBJ if who.uid == uid => return e.perm & want == want,
            USER => {
                if e.id == who.uid {
                    return e.perm & mask & want == want;
                }
                false
            }
            GROUP_OBJ => in_group(who, gid),
            GROUP => in_group(who, e.id),
            OTHER => return !in_some_group && e.perm & want == want,
            _ => false,
        };
        if matches {
            in_some_group = true;
            if e.perm & want == want {
                return e.perm & mask & want == want;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn acl(list: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut v = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in list {
            v.extend(tag.to_le_bytes());
            v.extend(perm.to_le_bytes());
            v.extend(id.to_le_bytes());
        }
        v
    }

    #[test]
    fn checks_as_the_kernel() {
        let none = u32::MAX;
        assert_eq!(check(&acl(&[])), Ok(()));
        assert_eq!(check(&acl(&[(USER_OBJ, 7, none), (GROUP_OBJ, 5, none), (OTHER, 5, none)])), Ok(()));
        let full =
            [(USER_OBJ, 7, none), (USER, 4, 5), (GROUP_OBJ, 5, none), (GROUP, 1, 9), (MASK, 7, none), (OTHER, 0, none)];
        assert_eq!(check(&acl(&full)), Ok(()));
        // Without the mask, without the owner, in another order, with a bit too many, cut off.
        for skip in 0..full.len() {
            let mut part = full.to_vec();
            part.remove(skip);
            let ok = skip == 1 || skip == 3; // one of the named entries may be missing
            assert_eq!(check(&acl(&part)).is_ok(), ok, "without {skip}");
        }
        let mut turned = full.to_vec();
        turned.swap(1, 2);
        assert_eq!(check(&acl(&turned)), Err(Error::Invalid));
        assert_eq!(check(&acl(&[(USER_OBJ, 8, none), (GROUP_OBJ, 5, none), (OTHER, 5, none)])), Err(Error::Invalid));
        let whole = acl(&full);
        assert_eq!(check(&whole[..whole.len() - 1]), Err(Error::Invalid));
        assert_eq!(check(&[1, 0, 0, 0]), Err(Error::NotSupported));
        assert_eq!(check(&[]), Err(Error::Invalid));
    }

    #[test]
    fn decides_as_posix() {
        let a = acl(&[(USER_OBJ, 4, 0), (USER, 7, 5), (GROUP_OBJ, 6, 0), (GROUP, 1, 9), (MASK, 5, 0), (OTHER, 2, 0)]);
        let who = |uid, gid, groups: &[u32]| Cred { uid, gid, groups: groups.to_vec() };
        let can = |c: &Cred| -> Vec<u32> { [4, 2, 1].into_iter().filter(|w| allows(&a, 100, 200, c, *w)).collect() };
        assert_eq!(can(&who(100, 9, &[])), [4]); // the owner, whatever the groups say
        assert_eq!(can(&who(5, 200, &[])), [4, 1]); // named user, masked
        assert_eq!(can(&who(6, 200, &[])), [4]); // owning group, masked
        assert_eq!(can(&who(6, 1, &[9])), [1]); // named group
        assert_eq!(can(&who(6, 200, &[9])), [4, 1]); // either of two groups
        assert!(!allows(&a, 100, 200, &who(6, 200, &[9]), 5)); // but one entry has to allow all
        assert_eq!(can(&who(6, 1, &[])), [2]); // other, not masked
    }

    #[test]
    fn follows_the_mode() {
        let mut a = acl(&[(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 7, 0), (MASK, 7, 0), (OTHER, 7, 0)]);
        assert_eq!(mode_of(&a), (0o777, true));
        assert_eq!(restrict(&mut a, 0o100640), 0o100640);
        assert_eq!(a, acl(&[(USER_OBJ, 6, 0), (USER, 7, 5), (GROUP_OBJ, 7, 0), (MASK, 4, 0), (OTHER, 0, 0)]));
        set_mode(&mut a, 0o751);
        assert_eq!(a, acl(&[(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 7, 0), (MASK, 5, 0), (OTHER, 1, 0)]));
        let mut plain = acl(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)]);
        assert_eq!(restrict(&mut plain, 0o666), 0o644);
        assert_eq!(mode_of(&plain), (0o644, false));
    }
}
