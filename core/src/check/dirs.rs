// SPDX-License-Identifier: GPL-2.0-only
//! Names: directory entries, the ways back, counts of both, and that every directory hangs below the root.

use super::items::Object;
use super::repair::Fix;
use super::{Check, Got, Out, Place, Repair};
use crate::checksum::siphash;
use crate::error::{Error, Step};
use crate::format::{
    inode_flags, kind, Dirent, Inode, Key, Link, Orphan, Populate, Record, Schema, FILE_ID_BASE, SCHEMA_POPULATING,
};
use crate::mem;
use crate::ns::{mode, CONTROL_NAME};
use crate::op::ROOT;
use alloc::vec::Vec;

/// Most directories above one another that are followed.
const DEPTH_MAX: usize = 1_000_000;

/// Why a name cannot be one.
fn bad_name(name: &[u8]) -> bool {
    name.is_empty()
        || name.len() > 255
        || name == b"."
        || name == b".."
        || name == CONTROL_NAME
        || name.iter().any(|c| *c == b'/' || *c == 0)
}

fn dirent(ino: u64, dtype: u8, name: &[u8]) -> Step<Vec<u8>> {
    let mut v = mem::filled(Dirent::SIZE, 0u8)?;
    let _ = Dirent { ino, dtype, reserved: 0, name_len: name.len() as u16 }.emit(&mut v);
    mem::extend(&mut v, name)?;
    Ok(v)
}

fn link(name: &[u8]) -> Step<Vec<u8>> {
    let mut v = mem::filled(Link::SIZE, 0u8)?;
    let _ = Link { name_len: name.len() as u16, reserved: 0 }.emit(&mut v);
    mem::extend(&mut v, name)?;
    Ok(v)
}

impl Check {
    /// The lowest cookie that a name can have.
    fn bucket(&self, name: &[u8]) -> u64 {
        (siphash(&self.sb.hash_key, name) & 0x7fff_ffff_ffff_ff00).max(256)
    }

    pub(super) fn check_dirent(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        let d = Dirent::parse(v).unwrap_or_default();
        let name = v.get(Dirent::SIZE..).unwrap_or(&[]);
        let gone = Fix::Edit { key: *k, value: None };
        if usize::from(d.name_len) != name.len() || name.is_empty() || name.len() > 255 {
            out.bad(place, "Dirent.name_len", u64::from(d.name_len), "the bytes that follow, 1 to 255", Repair::Loss)?;
            return out.fix(gone);
        }
        if bad_name(name) {
            out.bad(place, "name", name.len() as u64, "a name that an entry may have", Repair::Loss)?;
            return out.fix(gone);
        }
        if k.offset < 256 || k.offset & !255 != self.bucket(name) {
            // It moves to where its name is looked for.
            out.bad(place, "Key.offset", k.offset, "a cookie from the hash of the name", Repair::Safe)?;
            let cookie = self.free_cookie(k.object, name)?;
            out.fix(Fix::Edit { key: *k, value: None })?;
            out.fix(Fix::Edit { key: Key::new(d.ino, kind::LINK, k.object).piece(k.offset), value: None })?;
            out.fix(Fix::Edit {
                key: Key::new(k.object, kind::DIRENT, cookie),
                value: Some(dirent(d.ino, d.dtype, name)?),
            })?;
            let back = Key::new(d.ino, kind::LINK, k.object).piece(cookie);
            return out.fix(Fix::Edit { key: back, value: Some(link(name)?) });
        }
        if !o.inode.is_some_and(|i| mode::is_dir(i.mode)) {
            out.bad(place, "entry", k.object, "of a directory", Repair::Loss)?;
            return out.fix(gone);
        }
        if d.reserved != 0 {
            out.bad(place, "Dirent.reserved", u64::from(d.reserved), "zero", Repair::Safe)?;
            out.fix(Fix::Edit { key: *k, value: Some(dirent(d.ino, d.dtype, name)?) })?;
        }
        // Entries of one hash have different names.
        let mut at = Key::new(k.object, kind::DIRENT, k.offset & !255);
        while at < *k {
            let Some((other, b)) = self.next(at, k)? else { break };
            if other < *k && b.get(Dirent::SIZE..) == Some(name) {
                out.bad(place, "name", k.offset, "no name twice", Repair::Loss)?;
                out.fix(Fix::Edit { key: Key::new(d.ino, kind::LINK, k.object).piece(k.offset), value: None })?;
                return out.fix(gone);
            }
            match other.next() {
                Some(n) => at = n,
                None => break,
            }
        }
        let is_dir = match self.find_inode(d.ino)? {
            None => {
                out.bad(place, "Dirent.ino", d.ino, "an inode that exists", Repair::Loss)?;
                return out.fix(gone);
            }
            Some(None) => d.dtype == mode::dtype(mode::DIR),
            Some(Some(i)) => {
                let want = mode::dtype(i.mode);
                if d.dtype != want {
                    out.wrong(
                        place,
                        "Dirent.dtype",
                        u64::from(d.dtype),
                        u64::from(want),
                        "the type of the inode",
                        Repair::Safe,
                    )?;
                    out.fix(Fix::Edit { key: *k, value: Some(dirent(d.ino, want, name)?) })?;
                }
                mode::is_dir(i.mode)
            }
        };
        o.entries = o.entries.saturating_add(1);
        o.subdirs = o.subdirs.saturating_add(u64::from(is_dir));
        let back = Key::new(d.ino, kind::LINK, k.object).piece(k.offset);
        match self.get(&back)? {
            Got::Lost => {}
            Got::Value(b) if b.get(Link::SIZE..) == Some(name) => {}
            _ => {
                out.bad(place, "Dirent.ino", d.ino, "an inode that knows this name (LINK)", Repair::Safe)?;
                out.fix(Fix::Edit { key: back, value: Some(link(name)?) })?;
            }
        }
        Ok(())
    }

    pub(super) fn check_link(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        let l = Link::parse(v).unwrap_or_default();
        let name = v.get(Link::SIZE..).unwrap_or(&[]);
        if usize::from(l.name_len) != name.len() || bad_name(name) {
            out.bad(place, "Link.name_len", u64::from(l.name_len), "the bytes that follow, a name", Repair::Safe)?;
            return out.fix(Fix::Edit { key: *k, value: None });
        }
        if l.reserved != 0 {
            out.bad(place, "Link.reserved", u64::from(l.reserved), "zero", Repair::Safe)?;
            out.fix(Fix::Edit { key: *k, value: Some(link(name)?) })?;
        }
        let dir = k.offset;
        let there = Key::new(dir, kind::DIRENT, k.sub);
        let parent = self.find_inode(dir)?;
        let (known, free) = match self.get(&there)? {
            Got::Lost => (true, false),
            Got::None => (false, true),
            Got::Value(b) => {
                (Dirent::parse(b).is_some_and(|d| d.ino == k.object) && b.get(Dirent::SIZE..) == Some(name), false)
            }
        };
        if !known {
            let dirs = parent.flatten().is_some_and(|d| mode::is_dir(d.mode) && d.nlink > 0);
            let back = free && dirs && k.sub & !255 == self.bucket(name);
            out.bad(place, "Key.offset", dir, "a directory that has this name", Repair::Safe)?;
            if !back {
                return out.fix(Fix::Edit { key: *k, value: None });
            }
            let dtype = mode::dtype(o.inode.map_or(0, |i| i.mode));
            out.fix(Fix::Edit { key: there, value: Some(dirent(k.object, dtype, name)?) })?;
        }
        o.links = o.links.saturating_add(1);
        o.link_dir = dir;
        let embedded = o.inode.is_some_and(|i| i.flags & inode_flags::EMBEDDED != 0);
        let collection = parent.flatten().is_some_and(|d| d.flags & inode_flags::COLLECTION != 0);
        if embedded && collection {
            self.check_membership(out, k)?;
        }
        Ok(())
    }

    /// A file with an embedding has a record in each collection that links it.
    fn check_membership(&self, out: &mut Out, k: &Key) -> Step<()> {
        let populating = match self.get(&Key::first(k.offset, kind::COLLECTION))? {
            Got::Value(v) => Schema::parse(v).is_some_and(|s| s.flags & SCHEMA_POPULATING != 0),
            _ => true,
        };
        if populating {
            return Ok(());
        }
        let id = FILE_ID_BASE | k.object;
        let there = match self.get(&Key::new(k.offset, kind::RECORD, id))? {
            Got::Lost => true,
            Got::None => false,
            Got::Value(v) => Record::parse(v).is_some(),
        };
        if there {
            return Ok(());
        }
        out.bad(Place::Item(*k), "record", k.offset, "there, in the collection that links the file", Repair::Safe)?;
        // The collection takes its children in once more: those that have a record are left alone.
        let key = Key::first(k.offset, kind::COLLECTION);
        if let Got::Value(v) = self.get(&key)? {
            let mut v = mem::to_vec(v)?;
            if let Some(s) = Schema::parse(&v) {
                let flags = s.flags | SCHEMA_POPULATING;
                Schema { flags, cursor: 0, ..s }.emit(&mut v).ok_or(Error::Corrupt)?;
                out.fix(Fix::Edit { key, value: Some(v) })?;
                let mark = Key::new(0, kind::POPULATE, k.offset);
                out.fix(Fix::Edit { key: mark, value: Some(mem::filled(Populate::SIZE, 0u8)?) })?;
            }
        }
        Ok(())
    }

    /// Counts of names, when all items of an inode were seen.
    pub(super) fn check_names(&self, out: &mut Out, o: &mut Object, i: &mut Inode) -> Step<()> {
        let place = Place::Inode(o.ino);
        let dir = mode::is_dir(i.mode);
        let root = o.ino == ROOT;
        let orphan = match self.get(&Key::new(0, kind::ORPHAN, o.ino))? {
            Got::Value(_) => Some(true),
            Got::None => Some(false),
            Got::Lost => None,
        };
        let named = if root { true } else { o.links > 0 };
        let want = match (named, dir) {
            (false, _) => 0,
            (true, true) => o.subdirs.saturating_add(2),
            (true, false) => o.links,
        };
        if !named && i.nlink != 0 && orphan == Some(false) {
            // A way to reach it is better than a loss.
            out.bad(place, "names", 0, "at least one, or an ORPHAN item", Repair::Safe)?;
            if self.pass == 1 {
                // An entry that knows it may give it its name back in this round.
                return out.fix(Fix::Again);
            }
            return self.adopt(out, o, i);
        }
        if u64::from(i.nlink) != want {
            out.wrong(
                place,
                "Inode.nlink",
                u64::from(i.nlink),
                want,
                "the names that there are (directories: 2 and their subdirectories)",
                Repair::Safe,
            )?;
            i.nlink = u32::try_from(want).unwrap_or(u32::MAX);
        }
        if want == 0 && orphan == Some(false) {
            out.bad(place, "Inode.nlink", 0, "an ORPHAN item for an inode without names", Repair::Safe)?;
            out.fix(Fix::Edit { key: Key::new(0, kind::ORPHAN, o.ino), value: Some(mem::filled(Orphan::SIZE, 0u8)?) })?;
        }
        if !dir {
            return Ok(());
        }
        if i.size != o.entries {
            out.wrong(place, "Inode.size", i.size, o.entries, "the entries of the directory", Repair::Safe)?;
            i.size = o.entries;
        }
        if o.links > 1 || (root && o.links > 0) {
            out.bad(place, "names", o.links, "one name at most for a directory, none for the root", Repair::No)?;
        }
        let parent = if root { ROOT } else { o.link_dir };
        if named && i.parent != parent {
            out.wrong(place, "Inode.parent", i.parent, parent, "the directory that holds its name", Repair::Safe)?;
            i.parent = parent;
        }
        o.rooted = root || (named && self.hangs_below_root(o.ino)?);
        o.rootless = named && !o.rooted;
        if o.rootless {
            out.bad(place, "Inode.parent", i.parent, "a way up to the root", Repair::No)?;
        }
        Ok(())
    }

    /// A cookie for a name that is put into a directory.
    fn free_cookie(&self, dir: u64, name: &[u8]) -> Step<u64> {
        let mut cookie = self.bucket(name);
        while matches!(self.get(&Key::new(dir, kind::DIRENT, cookie))?, Got::Value(_)) && cookie & 255 != 255 {
            cookie = cookie.saturating_add(1);
        }
        Ok(cookie)
    }

    /// Gives an inode without a name one in the root.
    fn adopt(&self, out: &mut Out, o: &Object, i: &mut Inode) -> Step<()> {
        let mut name = Vec::new();
        mem::extend(&mut name, b"lost+")?;
        let mut digits = [0u8; 20];
        let mut n = o.ino;
        for d in digits.iter_mut().rev() {
            *d = b'0'.saturating_add((n % 10) as u8);
            n /= 10;
        }
        let skip = digits.iter().position(|d| *d != b'0').unwrap_or(19);
        mem::extend(&mut name, digits.get(skip..).unwrap_or(&[]))?;
        let cookie = self.free_cookie(ROOT, &name)?;
        out.fix(Fix::Edit {
            key: Key::new(ROOT, kind::DIRENT, cookie),
            value: Some(dirent(o.ino, mode::dtype(i.mode), &name)?),
        })?;
        out.fix(Fix::Edit { key: Key::new(o.ino, kind::LINK, ROOT).piece(cookie), value: Some(link(&name)?) })?;
        if mode::is_dir(i.mode) {
            i.parent = ROOT;
            i.nlink = u32::try_from(o.subdirs.saturating_add(2)).unwrap_or(u32::MAX);
        } else {
            i.nlink = 1;
        }
        Ok(())
    }

    /// Follows the parents of a directory to the root, or to one that is known to hang below it or not to. A circle is
    /// found by comparing with a directory that was met earlier, a later one each time the way has doubled (Brent, 1980).
    fn hangs_below_root(&self, ino: u64) -> Step<bool> {
        let mut at = ino;
        let (mut met, mut met_at) = (0, 1usize);
        for n in 1..=DEPTH_MAX {
            if at == ROOT || self.dirs.contains(at) {
                return Ok(true);
            }
            if at == met || self.rootless.contains(at) {
                return Ok(false);
            }
            if n == met_at {
                met = at;
                met_at = met_at.saturating_mul(2);
            }
            match self.find_inode(at)? {
                Some(None) => return Ok(true),
                Some(Some(i)) if mode::is_dir(i.mode) && i.parent != at => at = i.parent,
                _ => return Ok(false),
            }
        }
        Ok(false)
    }
}
