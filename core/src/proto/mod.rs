// SPDX-License-Identifier: GPL-2.0-only
//! The request/reply protocol of a volume: programs send frames to a collection, whatever carries them (a
//! function call, the control file of a mount). Owns: the byte layout ([`wire`], shared with the client
//! crate), [`decode`] of requests into views that borrow from the frame, the writers of replies, and the
//! [`Session`] that puts frames together from writes of any size. Promises: no length in a frame is believed
//! before it is compared with the frame, nothing is allocated on its word, and decoding costs a constant
//! amount of work however large the frame is (operations are run again from the start when something is missing).

mod batch;
mod decode;
mod reply;
mod session;
pub mod wire;

#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use decode::*;
pub use reply::*;
pub use session::Session;

use crate::error::Error;
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;
use core::fmt;

/// A short text in place: messages have to be made where memory may be out. What does not fit is cut off
/// at a character.
#[derive(Clone, Copy)]
pub struct Text {
    len: u8,
    bytes: [u8; Text::MAX],
}

impl Text {
    /// Most bytes of a text.
    pub const MAX: usize = 95;

    /// No text.
    pub const fn new() -> Text {
        Text { len: 0, bytes: [0; Text::MAX] }
    }

    /// The formatted text: `Text::of(format_args!("vector {i} has a NaN"))`.
    pub fn of(args: fmt::Arguments<'_>) -> Text {
        let mut t = Text::new();
        // Writing never fails: what does not fit is dropped.
        let _ = fmt::write(&mut t, args);
        t
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..usize::from(self.len)).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or("")
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = Text::MAX.saturating_sub(usize::from(self.len));
        let mut n = s.len().min(room);
        while !s.is_char_boundary(n) {
            n = n.saturating_sub(1);
        }
        let from = usize::from(self.len);
        let to = from.saturating_add(n);
        if let Some(room) = self.bytes.get_mut(from..to) {
            for (d, s) in room.iter_mut().zip(s.as_bytes()) {
                *d = *s;
            }
            self.len = u8::try_from(to).unwrap_or(self.len);
        }
        Ok(())
    }
}

impl Default for Text {
    fn default() -> Text {
        Text::new()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Why a request is refused: what an error reply says.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// The kind; gives the reply its error number, and its message if `text` is empty.
    pub error: Error,
    /// The byte of the filter text, or the number of the vector, query or record that it is about, or [`wire::NO_POSITION`].
    pub position: u32,
    /// Records of the request that were done before.
    pub done: u64,
    /// Says more than [`Error::message`].
    pub text: Text,
}

impl Failure {
    /// A failure with its own words.
    pub fn new(error: Error, args: fmt::Arguments<'_>) -> Failure {
        Failure { error, position: wire::NO_POSITION, done: 0, text: Text::of(args) }
    }

    /// The same, about the item `position` of the request.
    pub fn at(self, position: usize) -> Failure {
        Failure { position: u32::try_from(position).unwrap_or(wire::NO_POSITION), ..self }
    }

    /// The message for people.
    pub fn message(&self) -> &str {
        if self.text.len == 0 {
            self.error.message()
        } else {
            self.text.as_str()
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, position: wire::NO_POSITION, done: 0, text: Text::new() }
    }
}

impl From<NoMemory> for Failure {
    fn from(e: NoMemory) -> Failure {
        Error::from(e).into()
    }
}

/// The error reply to `frame`, which need not be a valid request (its operation and tag are repeated as far as
/// they are there).
pub fn reply_failure(frame: &[u8], failure: &Failure) -> Result<Vec<u8>, NoMemory> {
    let mut start = [0u8; wire::RequestHead::SIZE];
    let n = frame.len().min(start.len());
    if let (Some(d), Some(s)) = (start.get_mut(..n), frame.get(..n)) {
        d.copy_from_slice(s);
    }
    let request = wire::RequestHead::parse(&start).unwrap_or_default();
    let message = failure.message().as_bytes();
    let len = wire::ReplyHead::SIZE.saturating_add(message.len());
    let head = wire::ReplyHead {
        len: u32::try_from(len).map_err(|_| NoMemory)?,
        version: wire::VERSION,
        op: request.op,
        tag: request.tag,
        status: failure.error.errno(),
        position: failure.position,
        done: failure.done,
    };
    let mut out = Vec::new();
    mem::reserve(&mut out, len)?;
    mem::extend(&mut out, &head.bytes())?;
    mem::extend(&mut out, message)?;
    Ok(out)
}

/// Whether a frame only reads, so that it may run as `Op::Query` (and in parallel through
/// `Volume::try_read`); everything else is an `Op::Request`. A frame too short to say is a read: it is refused.
pub fn is_read(frame: &[u8]) -> bool {
    wire::RequestHead::parse(frame).is_none_or(|h| wire::op::is_read(h.op) || wire::op::name(h.op) == "unknown")
}
