// SPDX-License-Identifier: GPL-2.0-only
//! Every item of the tree, in key order, so that all items of an inode come together: its fields, what they say
//! about each other, and what is counted. (Items of the volume: `volume`.)

use super::repair::Fix;
use super::volume::zero;
use super::{Check, Got, Out, Phase, Place, Repair};
use crate::checksum::siphash;
use crate::error::Step;
use crate::format::{
    inode_flags, kind, Embedding, Extent, Inode, Key, SpaceHead, Trim, Wire, Xattr, BLOCK, EXTENT_BLOCKS_MAX,
    EXTENT_UNWRITTEN, EXTENT_UNWRITTEN_MAX, TRIM_COLLECTION, VALUE_MAX,
};
use crate::mem;
use crate::ns::mode;
use crate::op::ROOT;
use alloc::vec::Vec;

/// The inode whose items are being read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Object {
    pub ino: u64,
    /// As it should be, as far as is known.
    pub inode: Option<Inode>,
    /// A field was wrong.
    pub changed: bool,
    /// What a dropped collection left behind is still being freed.
    dropped: bool,
    /// There is no inode: all of it is refuse.
    refuse: bool,
    pub links: u64,
    pub link_dir: u64,
    pub entries: u64,
    pub subdirs: u64,
    blocks: u64,
    /// Kind of the item before, and the end of its extent.
    kind: u32,
    end: u64,
    symlink: u64,
    /// The next piece of a value that is cut, and how many bytes are to come.
    piece: Option<(Key, u64)>,
    embedding: bool,
    /// Dimension of the embedding, as its items say.
    dim: u32,
    collection: bool,
    /// A directory that hangs below the root.
    pub rooted: bool,
    /// A directory that has a name and does not.
    pub rootless: bool,
}

/// Where the scan is.
#[derive(Debug, Default)]
pub struct Items {
    pos: Option<Key>,
    object: Object,
    begun: bool,
    pub(super) inodes: u64,
    pub(super) max_ino: u64,
}

/// `n` blocks of an extent, from its block `first` on, are not what was written.
fn bad_data(out: &mut Out, k: &Key, e: &Extent, first: u64, n: u64) -> Step<()> {
    let addr = e.addr.saturating_add(first);
    if k.kind == kind::EXTENT {
        let place = Place::Data { ino: k.object, from: k.offset.saturating_add(first), blocks: n, addr };
        return out.bad(place, "data", addr, "as its checksum says", Repair::No);
    }
    out.bad(Place::Blocks(addr, n), "collection whose stored index is damaged", k.object, "readable", Repair::No)
}

const B: u64 = BLOCK as u64;
const PIECE: u64 = VALUE_MAX as u64;

impl Check {
    #[inline(never)]
    pub(super) fn item_step(&mut self) -> Step<()> {
        let from = self.items.pos.unwrap_or(Key::MIN);
        let mut o = self.items.object;
        let mut out = Out::default();
        let item = match self.next(from, &Key::MAX)? {
            Some((k, v)) => Some((k, mem::to_vec(v)?)),
            None => None,
        };
        let Some((k, v)) = item else {
            if self.items.begun {
                self.finish_object(&mut out, &mut o)?;
            }
            self.say(out)?;
            self.phase = Phase::Collections;
            return Ok(());
        };
        let (mut rooted, mut rootless) = (None, None);
        if !self.items.begun || k.object != o.ino {
            if self.items.begun {
                self.finish_object(&mut out, &mut o)?;
                rooted = Some(o.ino).filter(|_| o.rooted);
                rootless = Some(o.ino).filter(|_| o.rootless);
            }
            o = Object { ino: k.object, ..Object::default() };
            if k.object != 0 && k.kind != kind::INODE {
                self.without_inode(&mut out, &k, &mut o)?;
            }
        }
        if o.refuse {
            out.fix(Fix::Edit { key: k, value: None })?;
        } else {
            self.check_item(&mut out, &k, &v, &mut o)?;
        }
        o.kind = k.kind;
        // Nothing below stops any more.
        if let Some(dir) = rooted {
            self.dirs.insert(dir, ())?;
        }
        if let Some(dir) = rootless {
            self.rootless.insert(dir, ())?;
        }
        if k.kind == kind::INODE && k.object != 0 {
            self.items.inodes = self.items.inodes.saturating_add(1);
            self.items.max_ino = self.items.max_ino.max(k.object);
            self.figures.inodes = self.items.inodes;
            if o.inode.is_some_and(|i| mode::is_dir(i.mode)) {
                self.figures.directories = self.figures.directories.saturating_add(1);
            }
        }
        if matches!(k.kind, kind::EXTENT | kind::INDEX_EXTENT) && !self.options.metadata_only {
            let n = Extent::parse(&v).filter(|e| e.flags == 0).map_or(0, |e| e.blocks);
            self.figures.data_blocks = self.figures.data_blocks.saturating_add(u64::from(n));
        }
        if k.kind == kind::COLLECTION && o.collection {
            mem::push(&mut self.collections, k.object)?;
            self.figures.collections = self.figures.collections.saturating_add(1);
        }
        if matches!(k.kind, kind::EXTENT | kind::SLOT_EXTENT | kind::VECTOR_EXTENT | kind::INDEX_EXTENT) {
            if let Some(e) = Extent::parse(&v) {
                self.claim_live(Place::Item(k), e.addr, u64::from(e.blocks))?;
            }
        }
        self.figures.items = self.figures.items.saturating_add(1);
        self.items.begun = true;
        self.items.object = o;
        self.say(out)?;
        match k.next() {
            Some(n) => self.items.pos = Some(n),
            None => self.phase = Phase::Collections,
        }
        Ok(())
    }

    /// The first item of an object is not its inode.
    #[inline(never)]
    fn without_inode(&self, out: &mut Out, k: &Key, o: &mut Object) -> Step<()> {
        match self.get(&Key::new(0, kind::TRIM, k.object))? {
            Got::Value(v) if Trim::parse(v).is_some_and(|t| t.from == TRIM_COLLECTION) => o.dropped = true,
            Got::Lost => {}
            _ => match self.get(&Key::first(k.object, kind::INODE))? {
                Got::Lost => {}
                _ => {
                    o.refuse = true;
                    out.bad(Place::Inode(k.object), "items", k.object, "of an inode that exists", Repair::Loss)?;
                }
            },
        }
        Ok(())
    }

    #[inline(never)]
    fn check_item(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        self.check_piece_end(out, k, o)?;
        let place = Place::Item(*k);
        let volume = matches!(k.kind, kind::SPACE | kind::ORPHAN | kind::TRIM | kind::LISTED | kind::POPULATE);
        if (k.object == 0) != volume {
            out.bad(place, "Key.kind", u64::from(k.kind), "a kind of items that belongs to this object", Repair::Loss)?;
            return out.fix(Fix::Edit { key: *k, value: None });
        }
        let cut = matches!(k.kind, kind::SYMLINK | kind::XATTR | kind::EMBEDDING | kind::LINK | kind::RECORD);
        if !cut && k.sub != 0 {
            out.bad(place, "Key.sub", k.sub, "0", Repair::Loss)?;
            return out.fix(Fix::Edit { key: *k, value: None });
        }
        let single = matches!(k.kind, kind::INODE | kind::SYMLINK | kind::EMBEDDING | kind::COLLECTION | kind::INDEX);
        if single && k.offset != 0 {
            out.bad(place, "Key.offset", k.offset, "0", Repair::Loss)?;
            return out.fix(Fix::Edit { key: *k, value: None });
        }
        match k.kind {
            kind::SPACE => {
                let len = SpaceHead::SIZE.saturating_add(crate::format::GROUP_BLOCKS as usize / 8);
                if v.len() != len {
                    out.wrong(place, "value", v.len() as u64, len as u64, "a head and a bitmap", Repair::Safe)?;
                }
                Ok(())
            }
            kind::ORPHAN => self.check_orphan(out, k, v),
            kind::TRIM => self.check_trim(out, k, v),
            kind::LISTED | kind::POPULATE => self.check_mark(out, k, v),
            kind::INODE => self.check_inode(out, k, v, o),
            kind::SYMLINK => {
                let link = o.inode.is_some_and(|i| mode::is_lnk(i.mode));
                let full = o.symlink % PIECE == 0;
                if !link || !full || k.sub != o.symlink / PIECE || v.is_empty() || v.contains(&0) {
                    out.bad(place, "piece", k.sub, "of the target of a symbolic link", Repair::Loss)?;
                    return out.fix(Fix::Edit { key: *k, value: None });
                }
                o.symlink = o.symlink.saturating_add(v.len() as u64);
                Ok(())
            }
            kind::XATTR => self.check_xattr(out, k, v, o),
            kind::EMBEDDING => self.check_embedding(out, k, v, o),
            kind::LINK => self.check_link(out, k, v, o),
            kind::DIRENT => self.check_dirent(out, k, v, o),
            kind::EXTENT | kind::SLOT_EXTENT | kind::VECTOR_EXTENT | kind::INDEX_EXTENT => {
                self.check_extent(out, k, v, o)
            }
            kind::COLLECTION => self.check_schema(out, k, v, o),
            kind::RECORD => self.check_record_piece(out, k, v, o),
            kind::INDEX => self.check_index_root(out, k, v, o),
            _ => {
                out.bad(place, "Key.kind", u64::from(k.kind), "a kind of items that exists", Repair::Loss)?;
                out.fix(Fix::Edit { key: *k, value: None })
            }
        }
    }

    /// A value in pieces ends where another item begins.
    fn check_piece_end(&self, out: &mut Out, k: &Key, o: &mut Object) -> Step<()> {
        let Some((at, left)) = o.piece else { return Ok(()) };
        if left > 0 && *k != at {
            self.cut_off(out, &at, left)?;
            o.piece = None;
        }
        Ok(())
    }

    /// The piece `at` of a value is missing: the pieces before it are of no use.
    fn cut_off(&self, out: &mut Out, at: &Key, left: u64) -> Step<()> {
        out.bad(Place::Item(*at), "piece", left, "there, as the value is longer", Repair::Loss)?;
        let first = if at.kind == kind::XATTR { at.sub & !0xffff } else { 0 };
        for sub in first..at.sub {
            out.fix(Fix::Edit { key: at.piece(sub), value: None })?;
        }
        Ok(())
    }

    /// A further piece of the value that is being read. False: it is none.
    pub(super) fn next_piece(&self, k: &Key, v: &[u8], o: &mut Object) -> bool {
        match o.piece {
            Some((at, left)) if at == *k && left > 0 && v.len() as u64 == left.min(VALUE_MAX as u64) => {
                self.expect_pieces(k, left.saturating_sub(v.len() as u64), o);
                true
            }
            _ => false,
        }
    }

    /// `left` bytes of the value that the item `k` holds are in the pieces after it.
    pub(super) fn expect_pieces(&self, k: &Key, left: u64, o: &mut Object) {
        o.piece = Some((k.piece(k.sub.saturating_add(1)), left));
    }

    // Inodes.

    fn check_inode(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Inode(k.object);
        let Some(i) = Inode::parse(v).filter(|_| v.len() == Inode::SIZE) else {
            o.refuse = true;
            out.wrong(place, "value", v.len() as u64, Inode::SIZE as u64, "an inode", Repair::Loss)?;
            return out.fix(Fix::Edit { key: *k, value: None });
        };
        let mut want = i;
        if k.object >= self.sb.next_ino {
            out.bad(place, "number", k.object, "below Super.next_ino", Repair::Safe)?;
        }
        if !mode::is_type(i.mode & mode::TYPE) || i.mode & !(mode::TYPE | 0o7777) != 0 {
            out.bad(place, "Inode.mode", u64::from(i.mode), "a file type and permission bits", Repair::No)?;
        }
        let (reg, dir, lnk) = (mode::is_reg(i.mode), mode::is_dir(i.mode), mode::is_lnk(i.mode));
        let device = matches!(i.mode & mode::TYPE, mode::CHR | mode::BLK);
        for (what, ns, fixed) in [
            ("Inode.atime_ns", i.atime_ns, &mut want.atime_ns),
            ("Inode.mtime_ns", i.mtime_ns, &mut want.mtime_ns),
            ("Inode.ctime_ns", i.ctime_ns, &mut want.ctime_ns),
            ("Inode.btime_ns", i.btime_ns, &mut want.btime_ns),
        ] {
            if ns >= 1_000_000_000 {
                out.bad(place, what, u64::from(ns), "below 10^9", Repair::Safe)?;
                *fixed = 0;
            }
        }
        if !device && i.rdev != 0 {
            out.wrong(place, "Inode.rdev", i.rdev, 0, "0 but for device nodes", Repair::Safe)?;
            want.rdev = 0;
        }
        if i.generation == 0 || i.generation > self.sb.generation {
            out.bad(place, "Inode.generation", i.generation, "1 to the generation of the checkpoint", Repair::Safe)?;
            want.generation = self.sb.generation;
        }
        if !dir && i.parent != 0 {
            out.wrong(place, "Inode.parent", i.parent, 0, "0 but for directories", Repair::Safe)?;
            want.parent = 0;
        }
        let embedded = i.flags & inode_flags::EMBEDDED != 0;
        let stale = i.flags & inode_flags::STALE != 0;
        let collection = i.flags & inode_flags::COLLECTION != 0;
        let incomplete = i.flags & inode_flags::INCOMPLETE != 0;
        let odd = (embedded || incomplete) && !reg || stale && !embedded || collection && !dir;
        if i.flags & !inode_flags::ALL != 0 || odd {
            out.bad(place, "Inode.flags", i.flags, "bits that fit the type of file", Repair::Safe)?;
            let of_files = inode_flags::EMBEDDED | inode_flags::STALE | inode_flags::INCOMPLETE;
            want.flags &= if reg { of_files } else { 0 } | if dir { inode_flags::COLLECTION } else { 0 };
            if !embedded {
                want.flags &= !inode_flags::STALE;
            }
        }
        if i.change == 0 {
            out.bad(place, "Inode.change", i.change, "at least 1", Repair::Safe)?;
            want.change = 1;
        }
        if i.embed_dim > 65_536 || (i.embed_dim != 0) != embedded {
            out.bad(
                place,
                "Inode.embed_dim",
                u64::from(i.embed_dim),
                "1 to 65536 with an embedding, else 0",
                Repair::Safe,
            )?;
        }
        if i.project != 0 {
            out.wrong(place, "Inode.project", u64::from(i.project), 0, "0", Repair::Safe)?;
            want.project = 0;
        }
        if i.reserved != [0; 32] {
            out.bad(place, "Inode.reserved", 1, "zero", Repair::Safe)?;
            want.reserved = [0; 32];
        }
        let size = if reg { i.size <= crate::data::SIZE_MAX } else { dir || lnk || i.size == 0 };
        if !size {
            out.bad(place, "Inode.size", i.size, "at most 2^62, and 0 where there are no contents", Repair::No)?;
        }
        if k.object == ROOT && !dir {
            out.bad(place, "Inode.mode", u64::from(i.mode), "the root is a directory", Repair::No)?;
        }
        o.changed = want != i;
        o.inode = Some(want);
        Ok(())
    }

    fn check_xattr(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        if k.sub & 0xffff != 0 {
            if !self.next_piece(k, v, o) {
                out.bad(place, "piece", k.sub, "the next one of a value", Repair::Loss)?;
                out.fix(Fix::Edit { key: *k, value: None })?;
            }
            return Ok(());
        }
        let h = Xattr::parse(v).unwrap_or_default();
        let n = usize::from(h.name_len);
        let name = v.get(Xattr::SIZE..Xattr::SIZE.saturating_add(n)).unwrap_or(&[]);
        let all = Xattr::SIZE.saturating_add(n).saturating_add(h.value_len as usize);
        if n == 0 || n > 255 || name.len() != n || name.contains(&0) {
            out.bad(place, "Xattr.name_len", n as u64, "1 to 255 bytes of name", Repair::Loss)?;
            return out.fix(Fix::Edit { key: *k, value: None });
        }
        if h.reserved != 0 {
            out.bad(place, "Xattr.reserved", u64::from(h.reserved), "zero", Repair::No)?;
        }
        if h.value_len > 65_536 || v.len() != all.min(VALUE_MAX) {
            out.bad(
                place,
                "Xattr.value_len",
                u64::from(h.value_len),
                "the bytes that follow, at most 65536",
                Repair::Loss,
            )?;
            out.fix(Fix::Edit { key: *k, value: None })?;
        }
        if siphash(&self.sb.hash_key, name) != k.offset || k.sub >> 16 > 0xffff {
            out.bad(place, "Key.offset", k.offset, "the hash of the name", Repair::No)?;
        }
        // Attributes with equal hashes have different names.
        let first = Key::new(k.object, kind::XATTR, k.offset);
        let mut at = first;
        while at < *k {
            let Some((other, b)) = self.next(at, k)? else { break };
            let other_name = b.get(Xattr::SIZE..Xattr::SIZE.saturating_add(n));
            let same = Xattr::parse(b).is_some_and(|x| x.name_len == h.name_len) && other_name == Some(name);
            if other < *k && other.sub & 0xffff == 0 && same {
                out.bad(place, "name", k.sub, "no name twice", Repair::No)?;
            }
            match other.piece(other.sub | 0xffff).next() {
                Some(n) => at = n,
                None => break,
            }
        }
        let left = all.saturating_sub(v.len()) as u64;
        self.expect_pieces(k, left, o);
        Ok(())
    }

    fn check_embedding(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        o.embedding = true;
        if k.sub != 0 {
            if !self.next_piece(k, v, o) {
                out.bad(place, "piece", k.sub, "the next one of the embedding", Repair::Loss)?;
                out.fix(Fix::Edit { key: *k, value: None })?;
            }
            return Ok(());
        }
        let h = Embedding::parse(v).unwrap_or_default();
        let dim = o.inode.map_or(0, |i| i.embed_dim);
        let all = Embedding::SIZE.saturating_add((h.dim as usize).saturating_mul(4));
        if h.dim == 0 || h.dim > 65_536 || v.len() != all.min(VALUE_MAX) {
            return out.bad(place, "Embedding.dim", u64::from(h.dim), "1 to 65536, with as many elements", Repair::No);
        }
        if h.dim != dim {
            out.wrong(place, "Embedding.dim", u64::from(h.dim), u64::from(dim), "the inode's embed_dim", Repair::Safe)?;
        }
        if h.element != 1 {
            out.wrong(place, "Embedding.element", u64::from(h.element), 1, "f32", Repair::No)?;
        }
        if h.reserved != 0 {
            out.wrong(place, "Embedding.reserved", h.reserved, 0, "zero", Repair::Safe)?;
            let mut value = mem::to_vec(v)?;
            let _ = Embedding { reserved: 0, ..h }.emit(&mut value);
            out.fix(Fix::Edit { key: *k, value: Some(value) })?;
        }
        o.dim = h.dim;
        self.expect_pieces(k, all.saturating_sub(v.len()) as u64, o);
        if let Some(words) = self.embedding_words(k.object)? {
            if self.env.distance.check(&words).is_err() {
                out.bad(place, "elements", u64::from(h.dim), "finite, with a norm that is finite", Repair::No)?;
            }
        }
        Ok(())
    }

    /// The elements of an embedding, if all of it is there.
    pub(super) fn embedding_words(&self, ino: u64) -> Step<Option<Vec<u32>>> {
        let mut bytes = Vec::new();
        let mut want = usize::MAX;
        let mut k = Key::first(ino, kind::EMBEDDING);
        while bytes.len() < want {
            let Got::Value(v) = self.get(&k)? else { return Ok(None) };
            if k.sub == 0 {
                let dim = Embedding::parse(v).map_or(0, |h| h.dim);
                if dim == 0 || dim > 65_536 {
                    return Ok(None);
                }
                want = Embedding::SIZE.saturating_add((dim as usize).saturating_mul(4));
            }
            if v.len() != want.saturating_sub(bytes.len()).min(VALUE_MAX) {
                return Ok(None);
            }
            mem::extend(&mut bytes, v)?;
            k = k.piece(k.sub.saturating_add(1));
        }
        let mut words = Vec::new();
        for w in bytes.get(Embedding::SIZE..).unwrap_or(&[]).chunks_exact(4) {
            mem::push(&mut words, u32::from_le_bytes(w.try_into().unwrap_or([0; 4])))?;
        }
        Ok(Some(words))
    }

    // Extents.

    fn check_extent(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        let e = Extent::parse(v).unwrap_or_default();
        let file = k.kind == kind::EXTENT;
        let unwritten = e.flags == EXTENT_UNWRITTEN && file;
        let most = if unwritten { EXTENT_UNWRITTEN_MAX } else { EXTENT_BLOCKS_MAX };
        let crcs = v.get(Extent::SIZE..).unwrap_or(&[]);
        let n = u64::from(e.blocks);
        let mut sound = true;
        let mut bad = |out: &mut Out, ok: bool, what, is, rule| -> Step<()> {
            if ok {
                return Ok(());
            }
            sound = false;
            out.bad(place, what, is, rule, Repair::Loss)
        };
        bad(out, e.flags == 0 || unwritten, "Extent.flags", u64::from(e.flags), "bit 0, in files only")?;
        bad(out, e.blocks > 0 && e.blocks <= most, "Extent.blocks", n, "1 to 240, unwritten 1 to 2^20")?;
        let want = if unwritten { 0 } else { n.saturating_mul(4) };
        bad(out, crcs.len() as u64 == want, "checksums", crcs.len() as u64 / 4, "one for each written block")?;
        bad(out, self.placeable(e.addr, n), "Extent.addr", e.addr, "blocks inside the volume, beside the superblocks")?;
        let end = k.offset.saturating_add(n);
        bad(out, end <= crate::data::SIZE_MAX / B, "Key.offset", k.offset, "below the largest size of a file")?;
        let before = if o.kind == k.kind { o.end } else { 0 };
        bad(out, k.offset >= before, "Key.offset", k.offset, "behind the extent before")?;
        if !sound {
            return out.fix(Fix::Edit { key: *k, value: None });
        }
        o.end = end;
        if e.birth == 0 || e.birth > self.sb.generation {
            out.bad(place, "Extent.birth", e.birth, "1 to the generation of the checkpoint", Repair::Safe)?;
        }
        if e.reserved != 0 {
            out.bad(place, "Extent.reserved", e.reserved, "zero", Repair::Safe)?;
        }
        let right = Extent { birth: e.birth.clamp(1, self.sb.generation.max(1)), reserved: 0, ..e };
        if right != e {
            let mut value = mem::to_vec(v)?;
            let _ = right.emit(&mut value);
            out.fix(Fix::Edit { key: *k, value: Some(value) })?;
        }
        let reg = o.inode.is_some_and(|i| mode::is_reg(i.mode));
        if file {
            if !reg {
                out.bad(place, "extent", k.object, "of a regular file", Repair::Loss)?;
                out.fix(Fix::Edit { key: *k, value: None })?;
            }
            o.blocks = o.blocks.saturating_add(n);
            let size = o.inode.map_or(0, |i| i.size);
            if !unwritten && end > size.div_ceil(B) {
                let trimmed = match self.get(&Key::new(0, kind::TRIM, k.object))? {
                    Got::Value(t) => Trim::parse(t).is_some_and(|t| t.from <= end),
                    Got::None => false,
                    Got::Lost => true,
                };
                if !trimmed {
                    out.bad(
                        place,
                        "Key.offset",
                        end,
                        "written blocks only up to the end of the file, unless a trim is pending",
                        Repair::Loss,
                    )?;
                    // The next mount cuts them off, as after a truncate that a crash interrupted.
                    let from = size.div_ceil(B).to_le_bytes();
                    out.fix(Fix::Edit { key: Key::new(0, kind::TRIM, k.object), value: Some(mem::to_vec(&from)?) })?;
                }
            }
        } else if !o.collection && !o.dropped {
            self.outside_collection(out, k)?;
        }
        // The streams of slots and vectors are read with their collection.
        let stream = matches!(k.kind, kind::SLOT_EXTENT | kind::VECTOR_EXTENT) || (o.dropped && !file);
        if unwritten || self.options.metadata_only || stream {
            return Ok(());
        }
        self.check_data(out, k, &e, crcs, o)
    }

    /// An item of a collection where there is none: allowed while a dropped one is being freed.
    pub(super) fn outside_collection(&self, out: &mut Out, k: &Key) -> Step<()> {
        match self.get(&Key::new(0, kind::TRIM, k.object))? {
            Got::Value(v) if Trim::parse(v).is_some_and(|t| t.from == TRIM_COLLECTION) => Ok(()),
            Got::Lost => Ok(()),
            _ => {
                out.bad(Place::Item(*k), "item", k.object, "of a collection", Repair::Loss)?;
                out.fix(Fix::Edit { key: *k, value: None })
            }
        }
    }

    /// The checksums of an extent's blocks, and zeros behind the end of a file.
    fn check_data(&self, out: &mut Out, k: &Key, e: &Extent, crcs: &[u8], o: &Object) -> Step<()> {
        // Small reads again one by one if the large one fails, so that one bad sector costs one block.
        let whole = self.read(e.addr, e.blocks)?;
        let mut bad_from: Option<(u64, u64)> = None;
        for i in 0..u64::from(e.blocks) {
            let block = match whole {
                Some(b) => {
                    let at = (i as usize).saturating_mul(BLOCK);
                    b.get(at..at.saturating_add(BLOCK))
                }
                None => self.read(e.addr.saturating_add(i), 1)?,
            };
            let want = u32::get(crcs, (i as usize).saturating_mul(4));
            let good = block.is_some_and(|b| want == Some((self.env.crc32c)(0, b)));
            match (&mut bad_from, good) {
                (Some((_, n)), false) => *n = n.saturating_add(1),
                (None, false) => bad_from = Some((i, 1)),
                (Some(_), true) | (None, true) => {}
            }
            if good {
                if let Some((first, n)) = bad_from.take() {
                    bad_data(out, k, e, first, n)?;
                }
            }
            let tail = o.inode.map_or(0, |x| x.size);
            let at = k.offset.saturating_add(i);
            let over = (tail % B) as usize;
            if k.kind == kind::EXTENT && good && over != 0 && at == tail / B {
                if let Some(rest) = block.and_then(|b| b.get(over..)) {
                    if !zero(rest) {
                        out.bad(Place::Item(*k), "bytes behind the end of the file", at, "zero", Repair::No)?;
                    }
                }
            }
        }
        if let Some((first, n)) = bad_from {
            bad_data(out, k, e, first, n)?;
        }
        Ok(())
    }

    // The end of an object.

    #[inline(never)]
    fn finish_object(&self, out: &mut Out, o: &mut Object) -> Step<()> {
        if let Some((at, left)) = o.piece.filter(|p| p.1 > 0) {
            self.cut_off(out, &at, left)?;
        }
        let Some(mut i) = o.inode.filter(|_| o.ino != 0) else { return Ok(()) };
        let place = Place::Inode(o.ino);
        let before = i;
        self.check_names(out, o, &mut i)?;
        if i.blocks != o.blocks {
            out.wrong(place, "Inode.blocks", i.blocks, o.blocks, "the blocks of its extents", Repair::Safe)?;
            if o.blocks < i.blocks && mode::is_reg(i.mode) {
                // Zeros where contents are lost would be wrong bytes: reading them is an error from now on.
                i.flags |= inode_flags::INCOMPLETE;
            }
            i.blocks = o.blocks;
        }
        if i.flags & inode_flags::INCOMPLETE != 0 && crate::data::whole(&i) {
            if before.flags & inode_flags::INCOMPLETE != 0 {
                let rule = "bit 3 only where contents can be missing";
                out.bad(place, "Inode.flags", before.flags, rule, Repair::Safe)?;
            }
            i.flags &= !inode_flags::INCOMPLETE;
        }
        if mode::is_lnk(i.mode) && (i.size != o.symlink || o.symlink == 0 || o.symlink > 4095) {
            out.wrong(place, "Inode.size", i.size, o.symlink, "the length of the target, 1 to 4095", Repair::Loss)?;
            i.size = o.symlink.min(4095);
            if o.symlink == 0 {
                // A link has to lead somewhere.
                let target = mem::to_vec(b"lost")?;
                i.size = target.len() as u64;
                out.fix(Fix::Edit { key: Key::first(o.ino, kind::SYMLINK), value: Some(target) })?;
            }
        }
        if (i.flags & inode_flags::EMBEDDED != 0) != o.embedding {
            let known = !o.embedding || o.dim > 0;
            let repair = if known { Repair::Safe } else { Repair::No };
            out.bad(place, "Inode.flags", i.flags, "bit 1 exactly where there is an embedding", repair)?;
            if !o.embedding {
                i.flags &= !(inode_flags::EMBEDDED | inode_flags::STALE);
                i.embed_dim = 0;
            } else if o.dim > 0 {
                i.flags |= inode_flags::EMBEDDED;
                i.embed_dim = o.dim;
            }
        } else if !o.embedding && i.embed_dim != 0 {
            i.embed_dim = 0;
        } else if o.dim > 0 && i.embed_dim != o.dim {
            // Said where the embedding was met.
            i.embed_dim = o.dim;
        }
        if (i.flags & inode_flags::COLLECTION != 0) != o.collection {
            out.bad(place, "Inode.flags", i.flags, "bit 0 exactly where there is a collection", Repair::Safe)?;
            i.flags ^= inode_flags::COLLECTION;
        }
        if o.changed || i != before {
            let mut v = mem::filled(Inode::SIZE, 0u8)?;
            let _ = i.emit(&mut v);
            out.fix(Fix::Edit { key: Key::first(o.ino, kind::INODE), value: Some(v) })?;
        }
        Ok(())
    }

    /// Notes that `o` holds a collection.
    pub(super) fn set_collection(&self, o: &mut Object) {
        o.collection = true;
    }

    /// Whether `o` is refuse of a dropped collection or holds one.
    pub(super) fn in_collection(&self, o: &Object) -> bool {
        o.collection || o.dropped
    }
}
