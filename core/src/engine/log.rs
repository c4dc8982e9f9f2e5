// SPDX-License-Identifier: GPL-2.0-only
//! The log: encoding of transactions as records, of records as groups, and the state of the
//! writer. Promises: a group is written to both copies before what it holds is acknowledged; a group that is
//! damaged, stale, or made up by someone who can only write files is not taken for one.

use crate::checksum::siphash;
use crate::error::Error;
use crate::format::{Key, LogHead, LogRecord, Slot, Wire, BLOCK, LOG_GROUP_MAX, LOG_MAGIC, VALUE_MAX};
use crate::mem::{self, Buf, NoMemory, Queue};
use crate::txn::Changes;
use alloc::vec::Vec;

/// Bytes that `c` takes as a record.
pub fn record_len(c: &Changes) -> usize {
    let lists = c.allocs.len().saturating_add(c.frees.len()).saturating_mul(12);
    let edits = c
        .edits
        .iter()
        .fold(0usize, |s, (_, v)| s.saturating_add(1 + Key::SIZE + 2).saturating_add(v.map_or(0, |(_, n)| n as usize)));
    let vectors = c
        .vectors
        .iter()
        .fold(0usize, |s, v| s.saturating_add(16 + Slot::SIZE + 4).saturating_add(v.len.saturating_mul(4)));
    LogRecord::SIZE
        .saturating_add(lists)
        .saturating_add(edits)
        .saturating_add(vectors)
        .saturating_add(c.drops.len().saturating_mul(16))
}

/// Appends `c` as a record to `out`. Room for [`record_len`] bytes was reserved, so it cannot fail for memory.
pub fn write_record(out: &mut Vec<u8>, c: &Changes, time: i64) -> Result<(), NoMemory> {
    let mut head = [0u8; LogRecord::SIZE];
    let record = LogRecord {
        len: record_len(c) as u32,
        allocs: c.allocs.len() as u32,
        frees: c.frees.len() as u32,
        edits: c.edits.len() as u32,
        vectors: c.vectors.len() as u32,
        drops: c.drops.len() as u32,
        time,
    };
    record.emit(&mut head).ok_or(NoMemory)?;
    mem::extend(out, &head)?;
    for (a, n) in c.allocs.iter().chain(&c.frees) {
        mem::extend(out, &a.to_le_bytes())?;
        mem::extend(out, &n.to_le_bytes())?;
    }
    for (k, v) in &c.edits {
        let mut key = [0u8; Key::SIZE];
        k.emit(&mut key).ok_or(NoMemory)?;
        let value = v.and_then(|(s, n)| c.bytes.get(s as usize..(s as usize).saturating_add(n as usize)));
        mem::extend(out, &[if v.is_some() { 1 } else { 2 }])?;
        mem::extend(out, &key)?;
        let value = value.unwrap_or(&[]);
        mem::extend(out, &(value.len() as u16).to_le_bytes())?;
        mem::extend(out, value)?;
    }
    for v in &c.vectors {
        mem::extend(out, &v.collection.to_le_bytes())?;
        mem::extend(out, &v.slot.to_le_bytes())?;
        let mut head = [0u8; Slot::SIZE];
        v.head.emit(&mut head).ok_or(NoMemory)?;
        mem::extend(out, &head)?;
        mem::extend(out, &(v.len as u32).to_le_bytes())?;
        for w in c.words.get(v.start..v.start.saturating_add(v.len)).unwrap_or(&[]) {
            mem::extend(out, &w.to_le_bytes())?;
        }
    }
    for (c, s) in &c.drops {
        mem::extend(out, &c.to_le_bytes())?;
        mem::extend(out, &s.to_le_bytes())?;
    }
    Ok(())
}

/// Reads a byte string front to back.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let (a, b) = self.rest.split_at_checked(n).ok_or(Error::Corrupt)?;
        self.rest = b;
        Ok(a)
    }
    fn get<T: Wire>(&mut self) -> Result<T, Error> {
        T::get(self.take(core::mem::size_of::<T>())?, 0).ok_or(Error::Corrupt)
    }
}

/// Reads the record at the start of `bytes` back into changes; also gives its length and time.
pub fn read_record(bytes: &[u8]) -> Result<(Changes, usize, i64), Error> {
    let head = LogRecord::parse(bytes).ok_or(Error::Corrupt)?;
    let len = head.len as usize;
    let mut r = Reader { rest: bytes.get(LogRecord::SIZE..len).ok_or(Error::Corrupt)? };
    let mut c = Changes::default();
    for i in 0..u64::from(head.allocs).saturating_add(u64::from(head.frees)) {
        let run = (r.get::<u64>()?, r.get::<u32>()?);
        mem::push(if i < u64::from(head.allocs) { &mut c.allocs } else { &mut c.frees }, run)?;
    }
    for _ in 0..head.edits {
        let op: u8 = r.get()?;
        let key = Key::parse(r.take(Key::SIZE)?).ok_or(Error::Corrupt)?;
        let n: u16 = r.get()?;
        let value = r.take(usize::from(n))?;
        if value.len() > VALUE_MAX {
            return Err(Error::Corrupt);
        }
        let range = match op {
            1 => {
                let start = c.bytes.len() as u32;
                mem::extend(&mut c.bytes, value)?;
                Some((start, u32::from(n)))
            }
            2 if n == 0 => None,
            _ => return Err(Error::Corrupt),
        };
        mem::push(&mut c.edits, (key, range))?;
    }
    for _ in 0..head.vectors {
        let collection = r.get()?;
        let slot = r.get()?;
        let head = Slot::parse(r.take(Slot::SIZE)?).ok_or(Error::Corrupt)?;
        let len = r.get::<u32>()? as usize;
        let bytes = r.take(len.checked_mul(4).ok_or(Error::Corrupt)?)?;
        let start = c.words.len();
        mem::reserve(&mut c.words, len)?;
        for w in bytes.chunks_exact(4) {
            mem::push(&mut c.words, u32::from_le_bytes(w.try_into().map_err(|_| Error::Corrupt)?))?;
        }
        mem::push(&mut c.vectors, crate::txn::VectorPut { collection, slot, head, start, len })?;
    }
    for _ in 0..head.drops {
        let drop = (r.get()?, r.get()?);
        mem::push(&mut c.drops, drop)?;
    }
    if !r.rest.is_empty() {
        return Err(Error::Corrupt);
    }
    Ok((c, len, head.time))
}

/// First value of the checksum of a log group: a secret of the volume and the epoch.
pub fn seed(hash_key: &[u8; 16], epoch: u64) -> u32 {
    siphash(hash_key, &epoch.to_le_bytes()) as u32
}

/// A place where a log group may start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// First copy.
    pub addr: u64,
    /// Second copy or 0.
    pub twin: u64,
    /// Blocks up to the end of the segment.
    pub room: u32,
}

impl Place {
    /// The place `n` blocks further on.
    pub fn skip(self, n: u32) -> Place {
        let d = u64::from(n);
        Place {
            addr: self.addr.saturating_add(d),
            twin: if self.twin == 0 { 0 } else { self.twin.saturating_add(d) },
            room: self.room.saturating_sub(n),
        }
    }
}

/// What has to be known to tell a valid group from anything else.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// The volume.
    pub uuid: [u8; 16],
    /// Key of its secret.
    pub hash_key: [u8; 16],
    /// Checksum function.
    pub crc32c: fn(u32, &[u8]) -> u32,
    /// Log epoch.
    pub epoch: u64,
}

/// Checks the group at the start of `bytes`, which was read at `place`, and gives its head.
/// `None` if there is no valid group; `bytes` may be longer than the group.
pub fn parse_group(e: &Expect, place: Place, seq: u64, bytes: &[u8]) -> Option<LogHead> {
    let h = LogHead::parse(bytes)?;
    let blocks = h.blocks;
    let fits = h.magic == LOG_MAGIC
        && h.uuid == e.uuid
        && h.addr == place.addr
        && h.twin == place.twin
        && h.seq == seq
        && h.epoch == e.epoch
        && blocks >= 1
        && blocks <= place.room
        && blocks <= LOG_GROUP_MAX
        && (h.payload as usize).checked_add(LogHead::SIZE)? <= (blocks as usize).checked_mul(BLOCK)?;
    if !fits {
        return None;
    }
    let body = bytes.get(4..(blocks as usize).checked_mul(BLOCK)?)?;
    ((e.crc32c)(seed(&e.hash_key, e.epoch), body) == h.crc).then_some(h)
}

/// A group that was built and waits to be written, or is being written.
#[derive(Debug)]
pub struct Group {
    /// Where.
    pub place: Place,
    /// Bytes of the first copy.
    pub buf: Buf,
    /// Bytes of the second copy, empty with single metadata.
    pub twin: Buf,
    /// Its sequence number.
    pub seq: u64,
    /// The newest transaction in it.
    pub txn: u64,
    /// Blocks.
    pub blocks: u32,
}

/// State of the log writer.
#[derive(Debug, Default)]
pub struct Log {
    /// Where the next group goes.
    pub next: Place,
    /// First block and length of the segment that `next` lies in: (addr, twin, blocks).
    pub segment: (u64, u64, u32),
    /// Sequence number of the next group.
    pub seq: u64,
    /// Epoch.
    pub epoch: u64,
    /// The next segment, ready to use.
    pub spare: Option<(u64, u64, u32)>,
    /// Segments that hold groups since the last checkpoint but no longer `next`.
    pub full: Vec<(u64, u64, u32)>,
    /// Records that wait to be put into a group.
    pub pending: Vec<u8>,
    /// End of each record in `pending` and the number of its transaction.
    pub marks: Vec<(usize, u64)>,
    /// Groups built, not yet being written.
    pub queue: Queue<Group>,
    /// Blocks written since the last checkpoint began.
    pub blocks: u64,
    /// Number of the newest transaction.
    pub txn: u64,
    /// The newest transaction whose group is written.
    pub written_txn: u64,
    /// Sequence number of the newest group that is written.
    pub written_seq: u64,
    /// The newest transaction that is durable.
    pub durable_txn: u64,
    /// Sequence number of the newest group that is durable.
    pub durable_seq: u64,
}

impl Log {
    /// Room for a record of `bytes` bytes, so that [`Log::append`] cannot fail.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), NoMemory> {
        mem::reserve(&mut self.pending, bytes)?;
        mem::reserve(&mut self.marks, 1)
    }

    /// Appends a transaction; returns its number.
    pub fn append(&mut self, c: &Changes, time: i64) -> Result<u64, NoMemory> {
        write_record(&mut self.pending, c, time)?;
        self.txn = self.txn.saturating_add(1);
        let end = self.pending.len();
        mem::push(&mut self.marks, (end, self.txn))?;
        Ok(self.txn)
    }

    /// Whether a record of `bytes` bytes finds room without a segment that is not there yet, given
    /// what already waits.
    pub fn has_room(&self, bytes: usize) -> bool {
        let need = blocks_for(bytes.saturating_add(self.pending.len()));
        // Cutting into groups costs a head and padding each.
        let need = need.saturating_add(need / 16).saturating_add(4);
        let spare = self.spare.map_or(0, |(_, _, n)| n);
        need <= self.next.room || need <= spare
    }

    /// Whether a checkpoint can make room for such a record: it writes what is pending and makes a full segment the
    /// spare one. Segments that a superblock made up may be too small for that.
    pub fn may_get_room(&self, bytes: usize) -> bool {
        let need = blocks_for(bytes);
        let need = need.saturating_add(need / 16).saturating_add(4);
        match self.spare {
            Some((_, _, n)) => need <= n,
            None => self.full.iter().any(|s| need <= s.2),
        }
    }

    /// Builds the next group out of pending records and queues it. False: nothing is pending, or the
    /// log has no room (a checkpoint has to make some).
    pub fn build(&mut self, e: &Expect, generation: u64) -> Result<bool, NoMemory> {
        let Some((first_end, _)) = self.marks.first().copied() else { return Ok(false) };
        if self.next.room == 0 {
            return Ok(false);
        }
        // As many records as fit into the room and the limit.
        // The last block of the last segment is kept: a group must be able to say where the next one starts.
        let keep = u32::from(self.spare.is_none());
        let limit = self.next.room.saturating_sub(keep).min(LOG_GROUP_MAX);
        let mut bytes = 0usize;
        let mut records = 0usize;
        let mut txn = 0;
        for (end, t) in &self.marks {
            if blocks_for(*end) > limit {
                break;
            }
            bytes = *end;
            records = records.saturating_add(1);
            txn = *t;
        }
        if records == 0 && (self.spare.is_none() || blocks_for(first_end) > self.spare.map_or(0, |s| s.2)) {
            return Ok(false);
        }
        let blocks = blocks_for(bytes);
        let mut next = self.next.skip(blocks);
        let mut moved = None;
        // A group of no records only leads over to the next segment.
        if records == 0 || next.room == 0 {
            match self.spare {
                Some((addr, twin, n)) => {
                    next = Place { addr, twin, room: n };
                    moved = Some((addr, twin, n));
                }
                None => return Ok(false),
            }
        }
        mem::reserve(&mut self.full, 1)?;
        let head = LogHead {
            crc: 0,
            magic: LOG_MAGIC,
            uuid: e.uuid,
            addr: self.next.addr,
            twin: self.next.twin,
            seq: self.seq,
            epoch: self.epoch,
            blocks,
            records: records as u32,
            payload: bytes as u32,
            room: next.room,
            next_addr: next.addr,
            next_twin: next.twin,
            durable_seq: self.durable_seq,
            generation,
            reserved: [0; 24],
        };
        let mut buf = Buf::zeroed((blocks as usize).saturating_mul(BLOCK))?;
        head.emit(&mut buf).ok_or(NoMemory)?;
        if let (Some(to), Some(from)) =
            (buf.get_mut(LogHead::SIZE..LogHead::SIZE.saturating_add(bytes)), self.pending.get(..bytes))
        {
            mem::copy(to, from);
        }
        let crc = (e.crc32c)(seed(&e.hash_key, self.epoch), buf.get(4..).unwrap_or(&[]));
        crc.put(&mut buf, 0).ok_or(NoMemory)?;
        let twin = if self.next.twin == 0 { Buf::empty() } else { buf.copy()? };
        let txn = if records == 0 { self.written_txn } else { txn };
        self.queue.push(Group { place: self.next, buf, twin, seq: self.seq, txn, blocks })?;
        // From here on nothing fails.
        mem::cut_front(&mut self.pending, bytes);
        mem::cut_front(&mut self.marks, records);
        for (end, _) in &mut self.marks {
            *end = end.saturating_sub(bytes);
        }
        self.seq = self.seq.saturating_add(1);
        self.blocks = self.blocks.saturating_add(u64::from(blocks));
        if let Some(s) = moved {
            let _ = mem::push(&mut self.full, self.segment);
            self.segment = s;
            self.spare = None;
        }
        self.next = next;
        Ok(true)
    }
}

/// Blocks of a group with `bytes` bytes of records.
pub fn blocks_for(bytes: usize) -> u32 {
    bytes.saturating_add(LogHead::SIZE).div_ceil(BLOCK) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::kind;

    fn sample(n: u64) -> Changes {
        let mut c = Changes::default();
        for i in 0..n {
            let start = c.bytes.len() as u32;
            c.bytes.extend_from_slice(&[i as u8; 33]);
            c.edits.push((Key::new(i, kind::INODE, n), if i % 3 == 0 { None } else { Some((start, 33)) }));
            c.allocs.push((i + 100, 1));
            c.frees.push((i + 200, 2));
            c.drops.push((1, i));
            let start = c.words.len();
            c.words.extend_from_slice(&[i as u32; 7]);
            let head = Slot { id: i, seq: i, inv_norm: 0, flags: 1, crc: 9 };
            c.vectors.push(crate::txn::VectorPut { collection: 5, slot: i, head, start, len: 7 });
        }
        c
    }

    #[test]
    fn records_survive_the_round_trip_and_cuts_are_refused() {
        for n in 0..20 {
            let c = sample(n);
            let mut b = Vec::new();
            write_record(&mut b, &c, 77).unwrap();
            assert_eq!(b.len(), record_len(&c));
            let (d, len, time) = read_record(&b).unwrap();
            assert_eq!((len, time), (b.len(), 77));
            let mut b2 = Vec::new();
            write_record(&mut b2, &d, 77).unwrap();
            assert_eq!(b, b2);
            for cut in 0..b.len() {
                assert!(read_record(&b[..cut]).is_err());
            }
            for i in 0..b.len() {
                let mut bad = b.clone();
                bad[i] ^= 0xff;
                let _ = read_record(&bad);
            }
        }
    }

    #[test]
    fn groups_lead_from_one_to_the_next() {
        let e = Expect { uuid: [3; 16], hash_key: [4; 16], crc32c: crate::checksum::crc32c, epoch: 9 };
        let mut log = Log {
            next: Place { addr: 100, twin: 500, room: 4 },
            segment: (100, 500, 4),
            spare: Some((900, 1300, 300)),
            seq: 40,
            epoch: 9,
            ..Log::default()
        };
        let mut disk = std::collections::HashMap::new();
        let mut want = 0;
        for n in [3, 5, 8, 60, 1, 2] {
            let c = sample(n);
            log.reserve(record_len(&c)).unwrap();
            log.append(&c, n as i64).unwrap();
            want += 1;
            while log.build(&e, 1).unwrap() {}
            while let Some(g) = log.queue.pop() {
                disk.insert(g.place.addr, g.buf.to_vec());
                disk.insert(g.place.twin, g.twin.to_vec());
            }
        }
        let mut place = Place { addr: 100, twin: 500, room: 4 };
        let mut seq = 40;
        let mut got = 0;
        while let Some(b) = disk.get(&place.addr) {
            let h = parse_group(&e, place, seq, b).unwrap();
            assert_eq!(disk[&place.twin], *b);
            assert!(parse_group(&e, place, seq + 1, b).is_none());
            assert!(parse_group(&Expect { epoch: 8, ..e }, place, seq, b).is_none());
            got += h.records;
            place = Place { addr: h.next_addr, twin: h.next_twin, room: h.room };
            seq += 1;
        }
        assert_eq!(got, want);
        assert!(place.addr >= 900);
    }
}
