// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames: writing requests section by section, reading replies section by section.

use crate::wire::{self, ReplyHead, RequestHead};
use crate::{Error, Refused};

/// A request that is being written.
pub(crate) struct Request {
    out: Vec<u8>,
}

impl Request {
    pub(crate) fn new(op: u16, tag: u64, flags: u32) -> Request {
        let head = RequestHead { version: wire::VERSION, op, tag, flags, ..RequestHead::default() };
        Request { out: head.bytes().to_vec() }
    }

    fn fill(&mut self) {
        self.out.resize(wire::pad(self.out.len()), 0);
    }

    pub(crate) fn section(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.fill();
    }

    pub(crate) fn u64s(&mut self, values: &[u64]) {
        self.out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }

    pub(crate) fn u32s(&mut self, values: &[u32]) {
        self.out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        self.fill();
    }

    pub(crate) fn f32s(&mut self, values: &[f32]) {
        self.out.reserve(values.len() * 4 + 8);
        self.out.extend(values.iter().flat_map(|v| v.to_bits().to_le_bytes()));
        self.fill();
    }

    pub(crate) fn finish(mut self) -> Result<Vec<u8>, Error> {
        if self.out.len() > wire::FRAME_MAX {
            let text =
                format!("the request has {} bytes, at most {} fit: send less at once", self.out.len(), wire::FRAME_MAX);
            return Err(Error::request(text));
        }
        let len = self.out.len() as u32;
        self.out[..4].copy_from_slice(&len.to_le_bytes());
        Ok(self.out)
    }
}

/// A reply that is being read.
pub(crate) struct Reply<'a> {
    frame: &'a [u8],
    at: usize,
}

const SHORT: Error = Error::Protocol("it is too short");

impl<'a> Reply<'a> {
    /// Checks head and status.
    pub(crate) fn new(frame: &'a [u8], op: u16, tag: u64) -> Result<Reply<'a>, Error> {
        let h = ReplyHead::parse(frame).ok_or(SHORT)?;
        if h.len as usize != frame.len() {
            return Err(Error::Protocol("it does not have the length that it says"));
        }
        if h.version != wire::VERSION {
            return Err(Error::Protocol("it has another version"));
        }
        let at = ReplyHead::SIZE;
        if h.status != 0 {
            let message = String::from_utf8_lossy(&frame[at..]).into_owned();
            let position = (h.position != wire::NO_POSITION).then_some(h.position);
            return Err(Error::Refused(Refused { errno: h.status, message, position, done: h.done }));
        }
        if h.op != op || h.tag != tag {
            return Err(Error::Protocol("it belongs to another request"));
        }
        Ok(Reply { frame, at })
    }

    pub(crate) fn section(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(n).ok_or(SHORT)?;
        let s = self.frame.get(self.at..end).ok_or(SHORT)?;
        self.at = wire::pad(end);
        Ok(s)
    }

    pub(crate) fn f32s(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        let bytes = self.section(n.checked_mul(4).ok_or(SHORT)?)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_bits(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect())
    }

    /// Room for `count` things of at least `each` bytes: not more than the frame can hold.
    pub(crate) fn capacity(&self, count: u32, each: usize) -> usize {
        (count as usize).min(self.frame.len().saturating_sub(self.at) / each)
    }

    pub(crate) fn end(&self) -> Result<(), Error> {
        // The padding of the last section may be left out.
        if self.at >= self.frame.len() {
            Ok(())
        } else {
            Err(Error::Protocol("it is too long"))
        }
    }
}

/// Takes `count` names, each with a u16 length, off the front of `b`.
pub(crate) fn take_paths(b: &mut &[u8], count: u32) -> Result<Vec<Vec<u8>>, Error> {
    let mut paths = Vec::with_capacity((count as usize).min(b.len() / 2));
    for _ in 0..count {
        let (n, rest) = b.split_first_chunk::<2>().ok_or(SHORT)?;
        let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*n))).ok_or(SHORT)?;
        paths.push(name.to_vec());
        *b = rest;
    }
    Ok(paths)
}

macro_rules! fixed {
    ($r:expr, $t:ident) => {{
        let b = $r.section(crate::wire::$t::SIZE)?;
        crate::wire::$t::parse(b).ok_or(Error::Protocol("it is too short"))?
    }};
}
pub(crate) use fixed;
