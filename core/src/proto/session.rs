// SPDX-License-Identifier: GPL-2.0-only
//! A session of the control file: puts request frames together from writes of any size and hands the reply
//! out in reads of any size. Every open of `.vexfs` has its own. Drivers do the rest: they run the frame
//! that [`Session::write`] completes, give the reply to [`Session::answer`], and only then let that write return.

use super::wire;
use crate::error::Error;
use crate::mem;
use alloc::vec::Vec;

/// What is under way in a session.
#[derive(Debug, Default)]
enum State {
    /// Nothing: reads give the end of file.
    #[default]
    Idle,
    /// The first bytes of a request.
    Partial(Vec<u8>),
    /// A request was handed to the driver.
    Running,
    /// A reply, and how much of it was read.
    Reply(Vec<u8>, usize),
}

/// A session of the control file.
#[derive(Debug, Default)]
pub struct Session {
    state: State,
}

impl Session {
    /// A session without a request.
    pub const fn new() -> Session {
        Session { state: State::Idle }
    }

    /// Takes bytes of a request. Gives how many of them belong to it (those after its end are not
    /// taken: write(2) returns the number) and the whole frame when this completed it. A reply that was not
    /// read is dropped. Memory grows with the bytes that came, not with the length that the frame announces.
    ///
    /// Fails with `Busy` while a request runs; with `Invalid` or `TooBig` if the announced length is
    /// impossible, and with `NoMemory`: the session is idle again then.
    pub fn write(&mut self, data: &[u8]) -> Result<(usize, Option<Vec<u8>>), Error> {
        let mut buf = match core::mem::take(&mut self.state) {
            State::Running => {
                self.state = State::Running;
                return Err(Error::Busy);
            }
            State::Partial(buf) => buf,
            State::Idle | State::Reply(..) => Vec::new(),
        };
        let mut taken = 0usize;
        if buf.len() < 4 {
            let head = data.get(..data.len().min(4usize.saturating_sub(buf.len()))).unwrap_or_default();
            mem::extend(&mut buf, head)?;
            taken = head.len();
        }
        if let Some(Ok(len)) = buf.get(..4).map(TryInto::try_into) {
            let len = u32::from_le_bytes(len) as usize;
            if len < wire::RequestHead::SIZE {
                return Err(Error::Invalid);
            }
            if len > wire::FRAME_MAX {
                return Err(Error::TooBig);
            }
            let rest = data.get(taken..).unwrap_or_default();
            let rest = rest.get(..rest.len().min(len.saturating_sub(buf.len()))).unwrap_or_default();
            mem::extend(&mut buf, rest)?;
            taken = taken.saturating_add(rest.len());
            if buf.len() == len {
                self.state = State::Running;
                return Ok((taken, Some(buf)));
            }
        }
        self.state = State::Partial(buf);
        Ok((taken, None))
    }

    /// The reply to the frame that [`Session::write`] gave.
    pub fn answer(&mut self, reply: Vec<u8>) {
        self.state = State::Reply(reply, 0);
    }

    /// The request that runs was given up (its writer was killed, or no reply could be made).
    pub fn abandon(&mut self) {
        self.state = State::Idle;
    }

    /// The next at most `max` bytes of the reply; empty at its end or if there is none. Call
    /// [`Session::advance`] with the number of bytes that reached the reader.
    pub fn peek(&self, max: usize) -> &[u8] {
        match &self.state {
            State::Reply(r, at) => {
                let rest = r.get(*at..).unwrap_or_default();
                rest.get(..rest.len().min(max)).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// Moves on after a read; the reply's memory is given back at its end.
    pub fn advance(&mut self, n: usize) {
        if let State::Reply(r, at) = &mut self.state {
            *at = at.saturating_add(n);
            if *at >= r.len() {
                self.state = State::Idle;
            }
        }
    }
}
