// SPDX-License-Identifier: GPL-2.0-only
//! The control file `.vexfs`: it resolves by name in every directory and is never listed. Each open is a
//! session of its own: what is written are frames of the protocol, cut anywhere; what is read are the
//! frames of the replies. A request is carried out by the write that completes it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use vexfs_core::op::{Cred, Ino};
use vexfs_core::proto::{reply_failure, wire, Failure};
use vexfs_core::Error;
use vexfs_embedded::Host;

/// Bit that makes the control file's inode number from its directory's. Inode numbers of the volume count
/// up from 1 and never come near it.
const BIT: u64 = 1 << 62;

/// Inode number of the control file of `dir`.
pub(crate) fn control_ino(dir: Ino) -> u64 {
    dir | BIT
}

/// The directory whose control file has the number `ino`.
pub(crate) fn directory_of(ino: u64) -> Option<Ino> {
    (ino & BIT != 0).then_some(ino & !BIT)
}

/// Whether `name` is the control file's.
pub(crate) fn is_control(name: &[u8]) -> bool {
    name == wire::CONTROL_FILE.as_bytes()
}

/// Replies that wait to be read; a session that does not read them may not go on asking.
const UNREAD_MAX: usize = wire::FRAME_MAX;

/// Most bytes of requests that are not complete and replies that are not read, in all sessions of one user but root. Anybody may open
/// a control file as often as he likes; the daemon's memory must not depend on it.
const USER_MAX: usize = 4 * wire::FRAME_MAX;

/// Bytes that the sessions of each user hold.
#[derive(Default)]
struct Budget(Mutex<HashMap<u32, usize>>);

impl Budget {
    /// A session of `uid` that held `before` bytes holds `now` bytes.
    fn note(&self, uid: u32, before: usize, now: usize) {
        if before != now {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let held = all.entry(uid).or_default();
            *held = (*held + now).saturating_sub(before);
            if *held == 0 {
                all.remove(&uid);
            }
        }
    }

    /// Whether sessions of `uid` may take more in.
    fn is_spent(&self, uid: u32) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uid != 0 && all.get(&uid).is_some_and(|held| *held > USER_MAX)
    }
}

#[derive(Default)]
struct Buffers {
    /// The request so far.
    request: Vec<u8>,
    /// Replies, and how much of them has been read.
    replies: Vec<u8>,
    read: usize,
    /// What the budget knows of it.
    noted: usize,
}

/// One open of a control file.
pub(crate) struct Session {
    /// Its directory.
    pub(crate) dir: Ino,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    buffers: Mutex<Buffers>,
    budget: Arc<Budget>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let held = self.buffers.get_mut().unwrap_or_else(PoisonError::into_inner).noted;
        self.budget.note(self.uid, held, 0);
    }
}

impl Session {
    fn new(dir: Ino, cred: Cred, budget: &Arc<Budget>) -> Session {
        let budget = budget.clone();
        Session { dir, uid: cred.uid, gid: cred.gid, groups: cred.groups, buffers: Mutex::default(), budget }
    }

    /// Tells the budget what the session holds now.
    fn note(&self, b: &mut Buffers) {
        let held = b.request.capacity() + b.replies.capacity();
        self.budget.note(self.uid, b.noted, held);
        b.noted = held;
    }

    fn cred(&self) -> Cred {
        Cred { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }

    /// Takes a piece of a request in. `run` carries out a whole frame. The error is an errno.
    pub(crate) fn write(&self, mut data: &[u8], mut run: impl FnMut(Cred, Vec<u8>) -> Vec<u8>) -> Result<(), i32> {
        let mut b = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        while !data.is_empty() {
            if b.replies.len() - b.read > UNREAD_MAX || self.budget.is_spent(self.uid) {
                return Err(libc::EBUSY);
            }
            // First the length, then the rest of the frame.
            let want = match b.request.first_chunk::<4>() {
                None => 4,
                Some(len) => u32::from_le_bytes(*len) as usize,
            };
            if b.request.len() >= 4 && !(wire::RequestHead::SIZE..=wire::FRAME_MAX).contains(&want) {
                b.request = Vec::new();
                self.note(&mut b);
                return Err(libc::EINVAL);
            }
            let n = want.saturating_sub(b.request.len()).min(data.len());
            let (piece, rest) = data.split_at(n);
            if b.request.try_reserve(piece.len()).is_err() {
                return Err(libc::ENOMEM);
            }
            b.request.extend_from_slice(piece);
            self.note(&mut b);
            data = rest;
            if want > 4 && b.request.len() == want {
                let frame = std::mem::take(&mut b.request);
                let reply = run(self.cred(), frame);
                if b.read == b.replies.len() {
                    b.replies = reply;
                    b.read = 0;
                } else {
                    b.replies.extend_from_slice(&reply);
                }
                self.note(&mut b);
            }
        }
        Ok(())
    }

    /// Whether a request is being carried out: a read would have to wait for it.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.buffers.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// The next bytes of the replies, at most `size`; none if all is read.
    pub(crate) fn read(&self, size: usize) -> Vec<u8> {
        let mut b = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let n = (b.replies.len() - b.read).min(size);
        let bytes = b.replies[b.read..b.read + n].to_vec();
        b.read += n;
        if b.read == b.replies.len() {
            b.replies = Vec::new();
            b.read = 0;
            self.note(&mut b);
        }
        bytes
    }
}

/// All open sessions, by file handle.
#[derive(Default)]
pub(crate) struct Sessions {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Session>>>,
    budget: Arc<Budget>,
}

impl Sessions {
    pub(crate) fn open(&self, dir: Ino, cred: Cred) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let session = Arc::new(Session::new(dir, cred, &self.budget));
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(fh, session);
        fh
    }

    pub(crate) fn get(&self, fh: u64) -> Option<Arc<Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&fh).cloned()
    }

    pub(crate) fn close(&self, fh: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&fh);
    }
}

/// Carries out one frame (a change is refused if `reads_only`), and says whose cached attributes the kernel has to
/// forget because of it.
pub(crate) fn carry_out(host: &Host, dir: Ino, cred: Cred, frame: Vec<u8>, reads_only: bool) -> (Vec<u8>, Vec<Ino>) {
    if reads_only && !wire::RequestHead::parse(&frame).is_some_and(|h| wire::op::is_read(h.op)) {
        let refused = Failure::from(Error::ReadOnly);
        return (reply_failure(&frame, &refused).unwrap_or_default(), Vec::new());
    }
    let stale = changed_inodes(host, dir, &frame);
    let reply = host.request(dir, cred, frame).unwrap_or_default();
    (reply, stale)
}

/// Inodes whose attributes a request changes behind the kernel's back: it knows only of what goes
/// through its own calls.
fn changed_inodes(host: &Host, dir: Ino, frame: &[u8]) -> Vec<Ino> {
    let Some(head) = wire::RequestHead::parse(frame) else { return Vec::new() };
    if wire::op::is_read(head.op) {
        return Vec::new();
    }
    let mut stale = vec![dir];
    let body = frame.get(wire::RequestHead::SIZE..).unwrap_or_default();
    match head.op {
        wire::op::EMBED => {
            if let Some(e) = wire::Embed::parse(body) {
                let name = body.get(wire::Embed::SIZE..).and_then(|b| b.get(..e.name_len as usize));
                if e.ino != 0 {
                    stale.push(e.ino);
                } else if let Some(name) = name.filter(|n| !n.is_empty() && n.len() <= 255) {
                    let op = vexfs_core::op::Op::Lookup { dir, name: name.to_vec() };
                    if let Ok(vexfs_core::op::Reply::Attr(a)) = host.call(op) {
                        stale.push(a.ino);
                    }
                }
            }
        }
        wire::op::DELETE => {
            let ids = body.get(wire::Ids::SIZE..).unwrap_or_default();
            stale.extend(
                ids.chunks_exact(8)
                    .filter_map(|c| c.try_into().ok().map(u64::from_le_bytes))
                    .filter_map(|id| id.checked_sub(wire::FILE_ID_BASE)),
            );
        }
        _ => {}
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: u32, fill: u8) -> Vec<u8> {
        let mut f = vec![fill; len as usize];
        f[..4].copy_from_slice(&len.to_le_bytes());
        f
    }

    #[test]
    fn frames_are_put_together_from_any_split() {
        let mut stream = Vec::new();
        for i in 0..20u32 {
            stream.extend(frame(32 + i * 37, i as u8));
        }
        for step in [1, 2, 3, 4, 5, 31, 32, 33, 100, 1000, stream.len()] {
            let s = Session::new(5, Cred::default(), &Arc::default());
            let mut seen = Vec::new();
            for piece in stream.chunks(step) {
                s.write(piece, |_, f| {
                    seen.push(f.clone());
                    f[..8].to_vec()
                })
                .unwrap();
            }
            assert_eq!(seen.concat(), stream);
            assert_eq!(seen.len(), 20);
            let mut got = Vec::new();
            loop {
                let b = s.read(7);
                if b.is_empty() {
                    break;
                }
                got.extend(b);
            }
            let want: Vec<u8> = seen.iter().flat_map(|f| f[..8].to_vec()).collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn wrong_lengths_are_refused_and_forgotten() {
        let s = Session::new(5, Cred::default(), &Arc::default());
        for bad in [0u32, 4, 31, (64 << 20) + 1, u32::MAX] {
            assert_eq!(s.write(&[&bad.to_le_bytes()[..], &[0; 4]].concat(), |_, f| f), Err(libc::EINVAL));
        }
        let mut n = 0;
        s.write(&frame(40, 1), |_, f| {
            n += 1;
            f
        })
        .unwrap();
        assert_eq!((n, s.read(100).len()), (1, 40));
    }

    #[test]
    fn replies_that_nobody_reads_do_not_pile_up() {
        let s = Session::new(5, Cred::default(), &Arc::default());
        let f = frame(32, 0);
        let mut n = 0;
        while s.write(&f, |_, _| vec![0; 16 << 20]).is_ok() {
            n += 1;
            assert!(n < 10);
        }
        assert_eq!(s.write(&f, |_, _| Vec::new()), Err(libc::EBUSY));
        while !s.read(1 << 20).is_empty() {}
        assert_eq!(s.write(&f, |_, _| Vec::new()), Ok(()));
    }

    #[test]
    fn a_user_cannot_make_the_daemon_hold_any_amount() {
        let all = Sessions::default();
        let open = |uid| all.get(all.open(5, Cred { uid, ..Cred::default() })).unwrap();
        let mut begin = (wire::FRAME_MAX as u32).to_le_bytes().to_vec();
        begin.resize(16 << 20, 0);
        let mut taken = 0;
        for _ in 0..100 {
            taken += usize::from(open(1000).write(&begin, |_, _| Vec::new()).is_ok());
        }
        assert!((16..=18).contains(&taken), "{taken} sessions hold 16 MiB each");
        assert_eq!(open(1000).write(&frame(32, 0), |_, f| f), Err(libc::EBUSY));
        assert_eq!(open(1001).write(&frame(32, 0), |_, f| f), Ok(()), "another user");
        assert_eq!(open(0).write(&begin, |_, f| f), Ok(()), "root");
        for fh in 1..=50 {
            all.close(fh);
        }
        assert_eq!(open(1000).write(&frame(32, 0), |_, f| f), Ok(()), "after they were closed");
    }
}
