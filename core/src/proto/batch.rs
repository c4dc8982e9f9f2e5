// SPDX-License-Identifier: GPL-2.0-only
//! Cuts a search with many queries into parts, for drivers: a search holds the shared side of the volume's lock, so a
//! long one would keep all changes waiting; between parts they get their turn, and parts may run side by side.
//! The reply is the one that the whole request would have had; a search with something wrong in it
//! is carried out as a whole, so that the message names the query by its number.

use super::wire;
use crate::error::Error;
use crate::mem;
use alloc::vec::Vec;

/// Queries of a part.
const PART: usize = 16;
/// The same if there is a filter or permissions have to be looked at: what is found out about a record then
/// serves all queries of the part.
const PART_JUDGED: usize = 256;

const HEAD: usize = wire::RequestHead::SIZE;
const BODY: usize = HEAD + wire::Search::SIZE;
const REPLY: usize = wire::ReplyHead::SIZE + wire::SearchReply::SIZE;

/// A search that is worth cutting.
#[derive(Debug)]
pub struct Batch<'a> {
    head: wire::RequestHead,
    search: wire::Search,
    queries: &'a [u8],
    filter: &'a [u8],
    part: usize,
}

impl<'a> Batch<'a> {
    /// The batch in `frame`, if it is a well-formed search with enough queries; others go to the volume as they are,
    /// which says what is wrong with them.
    pub fn of(frame: &'a [u8], superuser: bool) -> Option<Batch<'a>> {
        let head = wire::RequestHead::parse(frame)?;
        if head.op != wire::op::SEARCH || head.version != wire::VERSION || head.len as usize != frame.len() {
            return None;
        }
        let search = wire::Search::parse(frame.get(HEAD..)?)?;
        let part = if search.filter_len == 0 && superuser { PART } else { PART_JUDGED };
        let bytes = (search.count as usize).checked_mul(search.dim as usize)?.checked_mul(4)?;
        let start = BODY.checked_add(wire::pad(bytes))?;
        let whole = start.checked_add(wire::pad(search.filter_len as usize))?;
        let ok = search.count as usize > part && search.count <= wire::QUERIES_MAX && whole == frame.len();
        if !ok {
            return None;
        }
        let queries = frame.get(BODY..BODY.checked_add(bytes)?)?;
        Some(Batch { head, search, queries, filter: frame.get(start..)?, part })
    }

    /// Number of parts, two at least.
    pub fn parts(&self) -> usize {
        let more = (self.search.count as usize).saturating_add(self.part).saturating_sub(1);
        more.checked_div(self.part).unwrap_or(0)
    }

    /// The frame of part `i`.
    pub fn request(&self, i: usize) -> Result<Vec<u8>, Error> {
        let row = (self.search.dim as usize).saturating_mul(4);
        let step = self.part.saturating_mul(row).max(1);
        let queries = self.queries.chunks(step).nth(i).ok_or(Error::Invalid)?;
        let count = (self.search.count as usize).saturating_sub(i.saturating_mul(self.part)).min(self.part);
        let padded = wire::pad(queries.len());
        let len = BODY.saturating_add(padded).saturating_add(self.filter.len());
        let mut out = Vec::new();
        mem::reserve(&mut out, len)?;
        mem::extend(&mut out, &wire::RequestHead { len: len as u32, ..self.head }.bytes())?;
        mem::extend(&mut out, &wire::Search { count: count as u32, ..self.search }.bytes())?;
        mem::extend(&mut out, queries)?;
        mem::resize(&mut out, BODY.saturating_add(padded), 0)?;
        mem::extend(&mut out, self.filter)?;
        Ok(out)
    }

    /// The reply, from those of all parts; none if one of them is an error.
    pub fn reply(&self, parts: &[Vec<u8>]) -> Result<Option<Vec<u8>>, Error> {
        let mut total = wire::SearchReply::default();
        let mut len = REPLY;
        for part in parts {
            let head = wire::ReplyHead::parse(part).ok_or(Error::Corrupt)?;
            if head.status != 0 {
                return Ok(None);
            }
            let s = part.get(wire::ReplyHead::SIZE..).and_then(wire::SearchReply::parse).ok_or(Error::Corrupt)?;
            total.count = total.count.saturating_add(s.count);
            total.evaluations = total.evaluations.saturating_add(s.evaluations);
            total.hops = total.hops.saturating_add(s.hops);
            total.reads = total.reads.saturating_add(s.reads);
            len = len.saturating_add(part.len()).saturating_sub(REPLY);
        }
        if len > wire::FRAME_MAX {
            return Err(Error::TooBig);
        }
        let first = parts.first().and_then(|p| wire::ReplyHead::parse(p)).ok_or(Error::Corrupt)?;
        let mut out = Vec::new();
        mem::reserve(&mut out, len)?;
        mem::extend(&mut out, &wire::ReplyHead { len: len as u32, ..first }.bytes())?;
        mem::extend(&mut out, &total.bytes())?;
        for part in parts {
            mem::extend(&mut out, part.get(REPLY..).unwrap_or_default())?;
        }
        Ok(Some(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn frame(count: u32, dim: u32, filter: &[u8]) -> Vec<u8> {
        let row = dim as usize * 4;
        let len = BODY + wire::pad(count as usize * row) + wire::pad(filter.len());
        let head =
            wire::RequestHead { len: len as u32, version: 1, op: wire::op::SEARCH, tag: 5, ..Default::default() };
        let search = wire::Search { count, dim, k: 10, filter_len: filter.len() as u32, ..Default::default() };
        let mut f = [&head.bytes()[..], &search.bytes()[..]].concat();
        f.extend((0..count as usize * row).map(|i| (i / row) as u8));
        f.resize(wire::pad(f.len()), 0);
        f.extend_from_slice(filter);
        f.resize(len, 0);
        f
    }

    #[test]
    fn parts_hold_all_queries_and_the_filter() {
        for (count, dim, filter) in
            [(17, 3, &b""[..]), (100, 1, b""), (300, 5, b"a = 1"), (4096, 2, b""), (513, 3, b"x")]
        {
            let f = frame(count, dim, filter);
            let b = Batch::of(&f, true).unwrap();
            let mut seen = Vec::new();
            for i in 0..b.parts() {
                let p = b.request(i).unwrap();
                let (h, s) = (wire::RequestHead::parse(&p).unwrap(), wire::Search::parse(&p[HEAD..]).unwrap());
                assert_eq!((h.len as usize, h.tag, s.k, s.dim), (p.len(), 5, 10, dim));
                let bytes = (s.count * dim * 4) as usize;
                seen.extend_from_slice(&p[BODY..BODY + bytes]);
                assert_eq!(&p[BODY + wire::pad(bytes)..][..filter.len()], filter);
                assert!(Batch::of(&p, true).is_none());
            }
            assert_eq!(seen, &f[BODY..BODY + (count * dim * 4) as usize]);
        }
    }

    #[test]
    fn what_is_small_or_wrong_is_left_alone() {
        assert!(Batch::of(&frame(16, 3, b""), true).is_none());
        assert!(Batch::of(&frame(17, 3, b""), false).is_none());
        assert!(Batch::of(&frame(5000, 1, b""), true).is_none());
        let f = frame(100, 3, b"");
        assert!(Batch::of(&f[..f.len() - 8], true).is_none());
        assert!(Batch::of(&f[..40], true).is_none());
        assert!(Batch::of(b"", true).is_none());
    }

    #[test]
    fn replies_are_joined() {
        let f = frame(40, 3, b"");
        let b = Batch::of(&f, true).unwrap();
        let part = |i: u32, status: i32, position: u32| {
            let body = if status == 0 { vec![i as u8; 48] } else { b"wrong".to_vec() };
            let s = wire::SearchReply { count: 16, evaluations: 100 + u64::from(i), hops: 1, ..Default::default() };
            let s = if status == 0 { s.bytes().to_vec() } else { Vec::new() };
            let len = (wire::ReplyHead::SIZE + s.len() + body.len()) as u32;
            let head = wire::ReplyHead { len, version: 1, op: 10, tag: 5, status, position, done: 0 };
            [&head.bytes()[..], &s[..], &body[..]].concat()
        };
        let parts: Vec<_> = (0..3).map(|i| part(i, 0, wire::NO_POSITION)).collect();
        let r = b.reply(&parts).unwrap().unwrap();
        let (h, s) = (wire::ReplyHead::parse(&r).unwrap(), wire::SearchReply::parse(&r[32..]).unwrap());
        assert_eq!((h.len as usize, h.tag, s.count, s.evaluations, s.hops), (r.len(), 5, 48, 303, 3));
        assert_eq!(r[64..], [[0; 48], [1; 48], [2; 48]].concat());
        assert_eq!(b.reply(&[parts[0].clone(), part(1, 22, 3), part(2, 5, 0)]), Ok(None));
    }
}
