// SPDX-License-Identifier: GPL-2.0-only
//! Opening a volume: choose the newest valid superblock, read the log to its end, apply it record by record, write a
//! checkpoint. Promises: what is acknowledged as durable is there; what is there is a prefix of what was
//! acknowledged; a crash during recovery changes nothing.

use super::iotab::Purpose;
use super::log::{self, Expect, Place};
use super::space::Space;
use super::task::Task;
use super::{State, Volume, RECOVER};
use crate::error::{Error, Need, Step, Stop};
use crate::format::{
    kind, Extent, Key, LogHead, Ptr, Super, Wire, BLOCK, EXTENT_BLOCKS_MAX, EXTENT_UNWRITTEN, GROUP_BLOCKS,
    LOG_GROUP_MAX, SUPER_MAGIC, SUPER_SLOTS, VERSION, VOLUME_MAX, VOLUME_MIN,
};
use crate::io::IoKind;
use crate::mem::{self, Buf, NoMemory};
use crate::op::{Op, Time};
use crate::tree::Tree;
use crate::txn::Changes;
use alloc::vec::Vec;

/// Blocks of the log that are read at once.
const CHUNK: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Supers,
    HealSupers,
    Scan,
    Apply,
    Followers,
    Checkpoint,
}

/// Progress of opening a volume.
#[derive(Debug)]
pub struct Recover {
    stage: Stage,
    device_blocks: u64,
    place: Place,
    seq: u64,
    /// Groups up to this one are known to have been durable.
    durable: u64,
    /// Payloads of the valid groups.
    groups: Vec<(u64, Vec<u8>)>,
    /// Next record: group and byte.
    group: usize,
    at: usize,
    /// Reads of the log that failed: address and blocks.
    unreadable: Vec<(u64, u32)>,
    trims: Vec<u64>,
    populates: Vec<u64>,
    cursor: Option<Key>,
}

#[inline(never)]
fn read_super(b: &[u8], to: &mut Super) -> Option<()> {
    to.load(b)
}

/// The generation of the superblock in `b`, which was read at `addr`, if it is one.
#[inline(never)]
fn check_super(b: &[u8], crc32c: fn(u32, &[u8]) -> u32, addr: u64) -> Option<u64> {
    let s = Super::parse(b)?;
    let good = s.magic == SUPER_MAGIC && crc32c(0, b.get(4..BLOCK)?) == s.crc && s.addr == addr;
    good.then_some(s.generation)
}

/// Makes the superblock in `b` the copy at another place of its pair.
#[inline(never)]
fn set_place(b: &mut [u8], place: u32, addr: u64, crc32c: fn(u32, &[u8]) -> u32) -> Result<(), Error> {
    let mut s = mem::Box::try_new(Super::default())?;
    read_super(b, &mut s).ok_or(Error::NotVexfs)?;
    s.slot = place;
    s.addr = addr;
    s.emit(b).ok_or(Error::NotVexfs)?;
    let crc = crc32c(0, b.get(4..BLOCK).unwrap_or(&[]));
    crc.put(b, 0).ok_or(Error::NotVexfs)
}

/// Whether the fields of a superblock make sense; the error says why not.
pub fn validate_super(s: &Super, device_blocks: u64) -> Result<(), Error> {
    if s.version != VERSION || s.incompat != 0 || s.checksum != 1 || s.block_size as usize != BLOCK {
        return Err(Error::UnknownFeature);
    }
    if s.blocks > device_blocks {
        return Err(Error::Truncated);
    }
    let inside = |a: u64, n: u64| a >= crate::format::FIRST_BLOCK && a.checked_add(n).is_some_and(|e| e <= s.blocks);
    let root = Ptr::parse(&s.root).ok_or(Error::Corrupt)?;
    let two = s.copies == 2;
    let good = (1..=2).contains(&s.copies)
        && (VOLUME_MIN..=VOLUME_MAX).contains(&s.blocks)
        && inside(root.addr, 1)
        && (if two { inside(root.twin, 1) && root.twin != root.addr } else { root.twin == 0 })
        && s.root_level <= 16
        && s.log_room <= s.log_segment
        && s.log_room >= 1
        && inside(s.log_addr, u64::from(s.log_room))
        && s.log_addr
            .checked_add(u64::from(s.log_room))
            .and_then(|e| e.checked_sub(u64::from(s.log_segment)))
            .is_some()
        && (if two { inside(s.log_twin, u64::from(s.log_room)) } else { s.log_twin == 0 })
        && (s.spare_addr == 0
            || inside(s.spare_addr, u64::from(s.spare_blocks))
                && (if two { inside(s.spare_twin, u64::from(s.spare_blocks)) } else { s.spare_twin == 0 }))
        && s.generation > 0
        && s.generation < u64::MAX / 2
        && s.log_seq > 0
        && s.log_seq < u64::MAX / 2
        && s.next_ino > 1
        && s.next_ino < crate::format::FILE_ID_BASE
        && s.free_blocks <= s.blocks;
    if good {
        Ok(())
    } else {
        Err(Error::Corrupt)
    }
}

impl Volume {
    #[inline(never)]
    pub(super) fn start_recovery(&mut self, device_blocks: u64) -> Result<(), Error> {
        self.tasks.reserve(2)?;
        self.tasks.insert(RECOVER, mem::Box::try_new(Task::new(None, self.now, 0, true))?)?;
        self.recover = Some(mem::Box::try_new(Recover {
            stage: Stage::Supers,
            device_blocks,
            place: Place::default(),
            seq: 0,
            durable: 0,
            groups: Vec::new(),
            group: 0,
            at: 0,
            unreadable: Vec::new(),
            trims: Vec::new(),
            populates: Vec::new(),
            cursor: None,
        })?);
        for addr in SUPER_SLOTS.iter().flatten().filter(|a| **a < device_blocks) {
            self.recovery_read(*addr, 1)?;
        }
        if device_blocks <= 16 {
            self.recovery_failed(Error::NotVexfs);
        }
        Ok(())
    }

    fn recovery_read(&mut self, addr: u64, blocks: u32) -> Result<(), Error> {
        let buf = Buf::zeroed((blocks as usize).saturating_mul(BLOCK))?;
        if let Some(t) = self.tasks.get_mut(RECOVER) {
            self.io.submit(IoKind::Read, addr, u64::from(blocks), buf, Purpose::TaskRead(RECOVER, addr))?;
            t.waits = t.waits.saturating_add(1);
        }
        Ok(())
    }

    /// Opening failed.
    pub(super) fn recovery_failed(&mut self, e: Error) {
        self.state = State::Failed(e);
        self.recover = None;
        self.checkpoint = None;
        self.tasks.remove(RECOVER);
        while let Some(id) = self.early.pop() {
            self.finish(id, Err(e));
        }
    }

    pub(super) fn run_recovery(&mut self) {
        loop {
            let (Some(r), Some(t)) = (&self.recover, self.tasks.get_mut(RECOVER)) else { return };
            if t.waits > 0 {
                return;
            }
            let fail = t.fail.take();
            let step = match (r.stage, fail) {
                // A copy that cannot be read is a bad copy; what matters is whether a good one is left.
                (Stage::Supers, None | Some(Error::Io)) => self.choose_super(),
                (Stage::Scan, None | Some(Error::Io)) => self.scan_log(),
                (_, Some(e)) => Err(Stop::Fail(e)),
                (Stage::HealSupers, None) => {
                    if let Some(r) = &mut self.recover {
                        r.stage = Stage::Scan;
                    }
                    Ok(())
                }
                (Stage::Apply, None) => self.apply_log(),
                (Stage::Followers, None) => self.find_followers(),
                (Stage::Checkpoint, None) => return,
            };
            match step {
                Ok(()) => {}
                Err(s) => return self.stopped(RECOVER, s),
            }
        }
    }

    #[inline(never)]
    fn choose_super(&mut self) -> Step<()> {
        let Some(t) = self.tasks.get_mut(RECOVER) else { return Ok(()) };
        let crc = self.view.env.crc32c;
        let mut best: Option<(u64, u64)> = None;
        let device_blocks = self.recover.as_ref().map_or(0, |r| r.device_blocks);
        let mut heal = [None; SUPER_SLOTS.len()];
        for ([first, second], heal) in SUPER_SLOTS.iter().zip(&mut heal) {
            let look = |addr: u64| t.arrived.get(addr).map(|b| check_super(b, crc, addr));
            let (a, b) = (look(*first), look(*second));
            let unreadable = |x: Option<Option<u64>>, addr: u64| x.is_none() && addr < device_blocks;
            let (newer, from, to) = match (a.flatten(), b.flatten()) {
                // The newest one may be there and just not be readable now: the one before it is no substitute,
                // its log may have been given away.
                (None, None) if unreadable(a, *first) || unreadable(b, *second) => return Err(Stop::Fail(Error::Io)),
                (None, None) => continue,
                (Some(g), other) if other < Some(g) => (g, *first, (1, *second)),
                (other, Some(g)) if other < Some(g) => (g, *second, (0, *first)),
                (a, b) => {
                    let Some(g) = a.or(b) else { continue };
                    best = best.max(Some((g, *first)));
                    continue;
                }
            };
            best = best.max(Some((newer, from)));
            *heal = (to.1 < device_blocks).then_some((from, to));
        }
        let Some((_, addr)) = best else {
            return Err(Stop::Fail(Error::NotVexfs));
        };
        let found = t.arrived.get(addr).is_some_and(|b| read_super(b, &mut self.sb).is_some());
        if !found {
            return Err(Stop::Fail(Error::NotVexfs));
        }
        validate_super(&self.sb, device_blocks)?;
        self.heal_supers(&heal)?;
        let (Some(r), Some(t)) = (&mut self.recover, self.tasks.get_mut(RECOVER)) else { return Ok(()) };
        t.arrived.clear();
        let s = &*self.sb;
        if s.ro_compat != 0 && !self.read_only {
            return Err(Stop::Fail(Error::UnknownFeature));
        }
        *self.space = Space::new(s.blocks, s.free_blocks);
        let root = Ptr::parse(&s.root).ok_or(Error::Corrupt)?;
        self.view.tree = Tree::open(s.uuid, s.copies, root, s.root_level as u16, crc);
        let i = &mut self.view.info;
        i.hash_key = s.hash_key;
        i.uuid = s.uuid;
        i.generation = s.generation.saturating_add(1);
        i.next_ino = s.next_ino;
        i.inodes = s.inodes;
        i.blocks = s.blocks;
        let place = Place { addr: s.log_addr, twin: s.log_twin, room: s.log_room };
        let back = u64::from(s.log_segment.saturating_sub(s.log_room));
        let twin = if s.log_twin == 0 { 0 } else { s.log_twin.saturating_sub(back) };
        self.log.segment = (s.log_addr.saturating_sub(back), twin, s.log_segment);
        self.log.spare = (s.spare_addr != 0).then_some((s.spare_addr, s.spare_twin, s.spare_blocks));
        self.log.epoch = s.log_epoch;
        r.place = place;
        r.seq = s.log_seq;
        r.durable = s.durable_seq;
        r.stage = Stage::HealSupers;
        Ok(())
    }

    /// Makes the copies of each superblock equal, before anything else is written. A crash may leave a checkpoint whose
    /// superblock is in one of its two slots. While that is so, recovery may start from it or, if that slot cannot be
    /// read, from the checkpoint before, so the blocks of neither may be used again. Here one of them is chosen for good: the
    /// newer one gets its second copy; or, where it cannot be read, the slot gets back what was there before.
    #[inline(never)]
    fn heal_supers(&mut self, pairs: &[Option<(u64, (u32, u64))>]) -> Result<(), Error> {
        if self.read_only {
            return Ok(());
        }
        let crc = self.view.env.crc32c;
        for (good, (place, bad)) in pairs.iter().copied().flatten() {
            let Some(t) = self.tasks.get_mut(RECOVER) else { return Ok(()) };
            let mut b = t.arrived.get(good).ok_or(Error::NotVexfs)?.copy()?;
            set_place(&mut b, place, bad, crc)?;
            self.io.submit(IoKind::WriteDurable, bad, 1, b, Purpose::TaskWrite(RECOVER))?;
            t.waits = t.waits.saturating_add(1);
        }
        // What was read may have been in the device's cache only, left there by a process that was killed.
        if let Some(t) = self.tasks.get_mut(RECOVER) {
            self.io.submit(IoKind::Flush, 0, 0, Buf::empty(), Purpose::TaskWrite(RECOVER))?;
            t.waits = t.waits.saturating_add(1);
        }
        Ok(())
    }

    /// Reads the log group at the present place, from whichever copy is good.
    #[inline(never)]
    fn scan_log(&mut self) -> Step<()> {
        let e = self.expect();
        loop {
            let Some(r) = &self.recover else { return Ok(()) };
            let (place, seq) = (r.place, r.seq);
            match self.scan_group(&e, place, seq)? {
                Some((head, payload)) => {
                    let next = Place { addr: head.next_addr, twin: head.next_twin, room: head.room };
                    let along = place.skip(head.blocks);
                    let mut moved = None;
                    if next != along {
                        match self.log.spare {
                            Some((a, b, n)) if next == (Place { addr: a, twin: b, room: n }) => moved = Some((a, b, n)),
                            _ => return Err(Stop::Fail(Error::Corrupt)),
                        }
                    }
                    mem::reserve(&mut self.log.full, 1)?;
                    self.not_older_than(head.generation)?;
                    let Some(r) = &mut self.recover else { return Ok(()) };
                    mem::push(&mut r.groups, (seq, payload))?;
                    r.durable = r.durable.max(head.durable_seq.min(seq));
                    r.place = next;
                    r.seq = seq.saturating_add(1);
                    if let Some(s) = moved {
                        let old = self.log.segment;
                        mem::push(&mut self.log.full, old)?;
                        self.log.segment = s;
                        self.log.spare = None;
                    }
                }
                None => {
                    let Some(r) = &mut self.recover else { return Ok(()) };
                    r.stage = Stage::Apply;
                    r.unreadable = Vec::new();
                    let (place, seq) = (r.place, r.seq);
                    self.log.next = place;
                    self.log.seq = seq;
                    self.stats.replayed_groups = r.groups.len() as u64;
                    if let Some(t) = self.tasks.get_mut(RECOVER) {
                        t.arrived.clear();
                    }
                    return Ok(());
                }
            }
        }
    }

    /// A crash may have cut a checkpoint off while operations ran that belong to the one after it. The
    /// checkpoint that ends the recovery holds what they made, so it must not be older than they are.
    fn not_older_than(&mut self, generation: u64) -> Result<(), Error> {
        if generation > u64::MAX / 2 {
            return Err(Error::Corrupt);
        }
        // Its superblock must not go to the slots of the one that recovery started from.
        let even = generation.wrapping_sub(self.sb.generation) % 2 == 0;
        let next = generation.saturating_add(u64::from(even));
        let i = &mut self.view.info;
        i.generation = i.generation.max(next);
        Ok(())
    }

    /// The valid group at `place`, if there is one in either copy.
    #[inline(never)]
    fn scan_group(&mut self, e: &Expect, place: Place, seq: u64) -> Step<Option<(LogHead, Vec<u8>)>> {
        if place.room == 0 {
            return Ok(None);
        }
        let mut unreadable = false;
        for addr in [place.addr, place.twin] {
            if addr == 0 {
                continue;
            }
            let mut want = 1;
            let mut read = CHUNK.min(place.room);
            loop {
                if !self.have_chunk(addr, want, read)? {
                    unreadable = true;
                    break;
                }
                let Some(bytes) = self.chunk(addr, want) else { break };
                let Some(h) = LogHead::parse(bytes) else { break };
                if h.magic == crate::format::LOG_MAGIC
                    && h.blocks > want
                    && h.blocks <= place.room
                    && h.blocks <= LOG_GROUP_MAX
                    && want == 1
                {
                    want = h.blocks;
                    read = want.max(read);
                    continue;
                }
                if let Some(h) = log::parse_group(e, place, seq, bytes) {
                    let end = LogHead::SIZE.saturating_add(h.payload as usize);
                    let payload = mem::to_vec(bytes.get(LogHead::SIZE..end).unwrap_or(&[]))?;
                    return Ok(Some((h, payload)));
                }
                break;
            }
        }
        // What cannot be read now may be there: to take it for the end of the log would lose what is durable.
        if unreadable {
            return Err(Stop::Fail(Error::Io));
        }
        Ok(None)
    }

    /// Bytes of `blocks` blocks from `addr` on in a chunk that has arrived.
    fn chunk(&self, addr: u64, blocks: u32) -> Option<&[u8]> {
        let t = self.tasks.get(RECOVER)?;
        let len = (blocks as usize).checked_mul(BLOCK)?;
        for (start, b) in t.arrived.iter() {
            if let Some(d) = addr.checked_sub(start) {
                let from = usize::try_from(d).ok()?.checked_mul(BLOCK)?;
                if let Some(x) = b.get(from..from.checked_add(len)?) {
                    return Some(x);
                }
            }
        }
        None
    }

    /// True: the chunk is there. False: it cannot be read. Otherwise it is asked for: `read` blocks, or only the `want`
    /// blocks that matter if one behind them cannot be read.
    fn have_chunk(&mut self, addr: u64, want: u32, read: u32) -> Step<bool> {
        if self.chunk(addr, want).is_some() {
            return Ok(true);
        }
        let (Some(r), Some(t)) = (&self.recover, self.tasks.get_mut(RECOVER)) else { return Ok(false) };
        if r.unreadable.contains(&(addr, want)) {
            return Ok(false);
        }
        let read = if r.unreadable.contains(&(addr, read)) { want } else { read };
        // Old chunks are of no use any more. One that is, of the first copy, is just read again.
        if t.arrived.len() > 3 {
            t.arrived.clear();
        }
        self.space.check(addr, read)?;
        Err(Stop::Need(Need::Data { addr, blocks: read }))
    }

    /// A read of the log or of a superblock failed.
    pub(super) fn recovery_read_failed(&mut self, addr: u64, blocks: u32) -> Result<(), NoMemory> {
        match &mut self.recover {
            Some(r) => mem::push(&mut r.unreadable, (addr, blocks)),
            None => Ok(()),
        }
    }

    /// Applies the next record of the log.
    #[inline(never)]
    fn apply_log(&mut self) -> Step<()> {
        let Some(r) = &mut self.recover else { return Ok(()) };
        let Some((seq, payload)) = r.groups.get(r.group) else {
            r.stage = Stage::Followers;
            r.groups = Vec::new();
            return Ok(());
        };
        let seq = *seq;
        let rest = payload.get(r.at..).unwrap_or(&[]);
        if rest.is_empty() {
            r.group = r.group.saturating_add(1);
            r.at = 0;
            return Ok(());
        }
        let unsure = seq > r.durable;
        let (mut c, len, _) = log::read_record(rest)?;
        if unsure && !self.data_arrived_whole(&c)? {
            // Its data never reached the device, so nothing after it was ever durable: the log ends here.
            let Some(r) = &mut self.recover else { return Ok(()) };
            r.stage = Stage::Followers;
            r.groups = Vec::new();
            return Ok(());
        }
        self.replace_streams(&mut c)?;
        self.complete_changes(&mut c)?;
        for (a, n) in &c.allocs {
            self.space.check(*a, *n)?;
            let last = a.saturating_add(u64::from(n.saturating_sub(1)));
            for g in a / GROUP_BLOCKS..=last / GROUP_BLOCKS {
                self.load_group(g)?;
            }
        }
        self.ready_to_apply(&c)?;
        for v in &c.vectors {
            let words = c.words.get(v.start..v.start.saturating_add(v.len)).unwrap_or(&[]);
            let collection = self.view.collections.get(v.collection);
            if collection.is_some_and(|k| !k.is_sound(&self.view.env, &v.head, words)) {
                return Err(Stop::Fail(Error::Corrupt));
            }
        }
        for (a, n) in &c.allocs {
            self.space.replay_alloc(*a, *n)?;
        }
        self.apply(&c);
        self.stats.replayed_records = self.stats.replayed_records.wrapping_add(1);
        if let Some(t) = self.tasks.get_mut(RECOVER) {
            t.arrived.clear();
            t.retried = false;
        }
        let Some(r) = &mut self.recover else { return Ok(()) };
        r.at = r.at.saturating_add(len);
        Ok(())
    }

    /// A record that gives streams of a collection up names the extents that they had in the tree of its time. A checkpoint
    /// that was lost with the crash may have put them there, without a record: what goes is what this tree has.
    #[inline(never)]
    fn replace_streams(&self, c: &mut Changes) -> Step<()> {
        let is_stream = |k: u32| matches!(k, kind::SLOT_EXTENT | kind::VECTOR_EXTENT | kind::INDEX_EXTENT);
        let mut gone: Vec<(u64, u32)> = Vec::new();
        for (k, _) in &c.edits {
            if is_stream(k.kind) && !gone.contains(&(k.object, k.kind)) {
                mem::push(&mut gone, (k.object, k.kind))?;
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        // Such a record frees nothing else, and streams are given up as a whole.
        c.edits.retain(|(k, _)| !is_stream(k.kind));
        c.frees.clear();
        for (ino, stream) in gone {
            let mut from = Key::first(ino, stream);
            while let Some((k, v)) = self.view.tree.next(&from, &Key::last(ino, stream))? {
                let e = Extent::parse(v).ok_or(Error::Corrupt)?;
                if let Err(i) = c.edits.binary_search_by(|(x, _)| x.cmp(&k)) {
                    mem::insert(&mut c.edits, i, (k, None))?;
                }
                mem::push(&mut c.frees, (e.addr, e.blocks))?;
                from = k.next().ok_or(Error::Corrupt)?;
            }
        }
        Ok(())
    }

    /// What a record does not say because it follows from its edits.
    #[inline(never)]
    fn complete_changes(&mut self, c: &mut Changes) -> Step<()> {
        let mut new = 0u64;
        let mut dead = 0u64;
        let mut next_ino = self.view.info.next_ino;
        for (k, v) in &c.edits {
            match (k.kind, v) {
                (kind::INODE, Some(_)) => {
                    if self.view.tree.get(k)?.is_none() {
                        new = new.saturating_add(1);
                    }
                    next_ino = next_ino.max(k.object.saturating_add(1));
                }
                (kind::INODE, None) => {
                    let existed = self.view.tree.get(k)?.is_some();
                    dead = dead.saturating_add(u64::from(existed));
                }
                (kind::COLLECTION, None) => mem::push(&mut c.dropped_collections, k.object)?,
                (kind::COLLECTION, Some((s, n))) => {
                    let bytes = c.bytes.get(*s as usize..(*s as usize).saturating_add(*n as usize));
                    let (Some(col), Some(s)) =
                        (self.view.collections.get(k.object), bytes.and_then(crate::format::Schema::parse))
                    else {
                        continue;
                    };
                    let o = &col.schema;
                    if (o.index, o.m, o.ef_construction, o.lists, o.subvectors, o.bits, o.tables, o.seed)
                        != (s.index, s.m, s.ef_construction, s.lists, s.subvectors, s.bits, s.tables, s.seed)
                    {
                        mem::push(&mut c.reindex, k.object)?;
                    }
                }
                _ => {}
            }
        }
        // Counted when everything is at hand: this function may run several times.
        self.view.info.next_ino = next_ino;
        c.new_inodes = 0;
        c.dead_inodes = dead;
        self.pending_inodes(new, c);
        Ok(())
    }

    fn pending_inodes(&mut self, new: u64, c: &mut Changes) {
        // `apply` moves `next_ino` by `new_inodes`: start as much lower.
        self.view.info.next_ino = self.view.info.next_ino.saturating_sub(new);
        c.new_inodes = new;
    }

    /// Whether the data that the record's extents point to is on the device.
    #[inline(never)]
    fn data_arrived_whole(&mut self, c: &Changes) -> Step<bool> {
        for (k, v) in &c.edits {
            let Some((s, n)) = v else { continue };
            if k.kind != kind::EXTENT {
                continue;
            }
            let value = c.bytes.get(*s as usize..(*s as usize).saturating_add(*n as usize)).unwrap_or(&[]);
            let e = Extent::parse(value).ok_or(Error::Corrupt)?;
            if e.flags & EXTENT_UNWRITTEN != 0 {
                continue;
            }
            if e.blocks == 0 || e.blocks > EXTENT_BLOCKS_MAX {
                return Err(Stop::Fail(Error::Corrupt));
            }
            let Some(t) = self.tasks.get(RECOVER) else { return Ok(true) };
            let Some(data) = t.arrived.get(e.addr).filter(|b| b.len() >= (e.blocks as usize).saturating_mul(BLOCK))
            else {
                return Err(Stop::Need(Need::Data { addr: e.addr, blocks: e.blocks }));
            };
            for (i, b) in data.chunks_exact(BLOCK).enumerate().take(e.blocks as usize) {
                let at = Extent::SIZE.saturating_add(i.saturating_mul(4));
                let want = u32::get(value, at).ok_or(Error::Corrupt)?;
                if (self.view.env.crc32c)(0, b) != want {
                    let i = i as u64;
                    // A block that was there before this record is damaged, not missing.
                    if !self.known(k.object, k.offset.saturating_add(i), e.addr.saturating_add(i), want)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether the tree has this block of the file already, written and with this checksum.
    fn known(&self, ino: u64, block: u64, addr: u64, crc: u32) -> Step<bool> {
        let found = self.view.tree.prev(&Key::first(ino, kind::EXTENT), &Key::new(ino, kind::EXTENT, block))?;
        let Some((k, v)) = found else { return Ok(false) };
        let Some(e) = Extent::parse(v) else { return Ok(false) };
        let d = block.saturating_sub(k.offset);
        let at = Extent::SIZE.saturating_add((d as usize).saturating_mul(4));
        Ok(d < u64::from(e.blocks)
            && e.flags & EXTENT_UNWRITTEN == 0
            && e.addr.saturating_add(d) == addr
            && u32::get(v, at) == Some(crc))
    }

    /// Looks for what was left to do: inodes without names, truncates, collections that take children in.
    #[inline(never)]
    fn find_followers(&mut self) -> Step<()> {
        let Some(r) = &self.recover else { return Ok(()) };
        let from = r.cursor.unwrap_or(Key::first(0, kind::ORPHAN));
        let found = self.view.tree.next(&from, &Key::last(0, kind::POPULATE))?.map(|(k, _)| k);
        let Some(k) = found else {
            return self.finish_recovery().map_err(Stop::Fail);
        };
        self.orphans.reserve(1)?;
        let Some(r) = &mut self.recover else { return Ok(()) };
        match k.kind {
            // Only the item that the death of an inode takes away; the list would never lose another one.
            kind::ORPHAN if k.sub == 0 => {
                self.orphans.insert(k.offset, ())?;
                mem::push(&mut r.trims, k.offset)?;
            }
            kind::TRIM if !r.trims.contains(&k.offset) => mem::push(&mut r.trims, k.offset)?,
            kind::POPULATE => mem::push(&mut r.populates, k.offset)?,
            _ => {}
        }
        r.cursor = Some(k.next().ok_or(Error::Corrupt)?);
        Ok(())
    }

    #[inline(never)]
    fn finish_recovery(&mut self) -> Result<(), Error> {
        if let Some(r) = &mut self.recover {
            r.stage = Stage::Checkpoint;
        }
        self.log.written_seq = self.log.seq.saturating_sub(1);
        self.log.durable_seq = self.log.written_seq;
        if self.read_only {
            self.opened();
            return Ok(());
        }
        self.log.epoch = next_epoch(self.log.epoch, self.now);
        self.sb.mounts = self.sb.mounts.saturating_add(1);
        self.start_checkpoint(false)?;
        Ok(())
    }

    /// In service.
    #[inline(never)]
    pub(super) fn opened(&mut self) {
        self.state = State::Ready;
        self.tasks.remove(RECOVER);
        let Some(r) = self.recover.take() else { return };
        if !self.read_only {
            // Without memory they wait for the next opening.
            for ino in r.trims.iter().copied() {
                let _ = self.new_task(Op::Trim { ino }, true);
            }
            for dir in r.populates.iter().copied() {
                let _ = self.new_task(Op::Populate { dir }, true);
            }
        }
        while let Some(id) = self.early.pop() {
            self.wake(id);
        }
    }
}

/// The log epoch after one that ended. Groups of the old epoch that may lie behind the end are no part of the log any
/// more; neither are those of an epoch whose superblock was lost with all its copies, which began from the same one and
/// lie in the same place: so it is the time, in nanoseconds, unless the clock went back.
fn next_epoch(old: u64, now: Time) -> u64 {
    let nanos = u64::try_from(now.sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(u64::from(now.nsec));
    old.saturating_add(1).max(nanos)
}
