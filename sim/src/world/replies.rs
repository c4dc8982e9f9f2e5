// SPDX-License-Identifier: GPL-2.0-only
//! Judging replies: every one is compared with what the model says at the moment it comes.

use super::*;

impl World {
    pub(super) fn take_replies(&mut self) -> Res<bool> {
        let mut any = false;
        while let Some(Some((id, result))) = self.core(Volume::poll_reply) {
            any = true;
            let Some(i) = self.ops.iter().position(|p| p.id == id) else {
                return Err(format!("a reply to an operation that is not in flight: {id:?}"));
            };
            self.watch()?;
            let p = self.ops.remove(i);
            self.reply(p, result)?;
        }
        Ok(any)
    }

    /// Judges a reply.
    pub(super) fn reply(&mut self, p: Pending, result: Result<Reply, Error>) -> Res<()> {
        self.trace_reply(&result);
        self.say(|| format!("reply to {}: {}", p.act.line(), describe(&result)));
        if self.in_limbo(&p) {
            // What it did depends on what the failed one did: the next look at the volume tells.
            if !p.act.reads() && !p.act.syncs() && !p.after_abort {
                let known = Known { ino: None, generation: 0, first_id: None, when: p.when };
                self.history.maybe.push(Entry { act: p.act, known, at: p.at, must: false });
            }
            return Ok(());
        }
        let must = self.head.must(&p.act);
        let (errno, done) = match &result {
            Ok(Reply::Bytes(b)) if matches!(p.act, Act::Vec { .. }) => {
                let head = frames::reply(b)?.0;
                (head.status, Some(head.done))
            }
            Ok(_) => (0, None),
            Err(e) => (e.errno(), None),
        };
        if errno != 0 {
            *self.tally.errors.entry(errno).or_default() += 1;
            if must.is_err_and(|l| l.iter().any(|e| e.errno() == errno)) {
                return Ok(());
            }
            return self.failed(p, errno, done, must.err());
        }
        let reply = match (&result, must) {
            (Ok(_), Err(list)) => {
                return Err(format!("{}: succeeded, it must fail with one of {list:?}", p.act.line()))
            }
            (Ok(r), Ok(())) => r,
            (Err(_), _) => return Ok(()),
        };
        if p.after_abort && !p.act.reads() && !matches!(p.act, Act::Open { .. } | Act::Release { .. }) {
            return Err(format!("{}: succeeded after the volume had failed", p.act.line()));
        }
        let lossy = self.strikes[Fault::ReadError as usize] + self.strikes[Fault::Misread as usize] > 0;
        let told =
            oracle::check_reply(&self.head, &p.act, reply, lossy).map_err(|e| format!("{}: {e}", p.act.line()))?;
        self.tally.recall.0 += told.learned.recall.0;
        self.tally.recall.1 += told.learned.recall.1;
        if told.learned.unsure {
            let known = Known { ino: None, generation: 0, first_id: None, when: p.when };
            self.history.maybe.push(Entry { act: p.act, known, at: p.at, must: false });
            return Ok(());
        }
        if told.learned.populated {
            if let Act::Vec { dir, .. } = p.act {
                if let Some(c) = self.head.node_mut(dir).and_then(|n| n.coll.as_mut()) {
                    c.populating = false;
                }
            }
        }
        if p.act.syncs() {
            if !matches!(p.act, Act::Discard) {
                self.history.durable(p.at);
            }
            return Ok(());
        }
        if p.act.reads() {
            return Ok(());
        }
        let act = match (told.short, p.act) {
            (Some(n), Act::Write { ino, offset, data, kill }) => {
                Act::Write { ino, offset, data: data[..n].to_vec().into(), kill }
            }
            (_, act) => act,
        };
        let must = matches!(&act, Act::Vec { durable: true, .. });
        let known = Known { ino: told.ino, generation: told.generation, first_id: told.learned.first_id, when: p.when };
        self.head.apply(&act, &known);
        self.history.entries.push(Entry { act, known, at: p.at, must });
        if must {
            self.history.durable(p.at);
        }
        Ok(())
    }

    /// Whether an operation may see what a failed one did or did not do.
    pub(super) fn in_limbo(&self, p: &Pending) -> bool {
        self.history.maybe.iter().any(|e| collide(&e.act.locks(&self.head), &p.locks))
    }

    pub(super) fn trace_reply(&mut self, r: &Result<Reply, Error>) {
        match r {
            Ok(Reply::Bytes(b)) => self.trace.bytes(b),
            Ok(other) => {
                let text = format!("{other:?}");
                self.trace.bytes(text.as_bytes());
            }
            Err(e) => self.trace.word(0x2000 + e.errno() as u64),
        }
    }

    /// An operation failed although the model says that it can be done (or fails otherwise).
    pub(super) fn failed(
        &mut self,
        p: Pending,
        errno: i32,
        done: Option<u64>,
        must: Option<&'static [Error]>,
    ) -> Res<()> {
        let s = |f: Fault| self.strikes[f as usize] > 0;
        let rotten = || {
            let of = |ino| self.head.node(ino).and_then(|n| n.content()).is_some_and(|c| !c.rotten.is_empty());
            match &p.act {
                Act::Read { ino, .. } | Act::Write { ino, .. } | Act::Fallocate { ino, .. } => of(*ino),
                Act::SetAttr { ino, .. } => of(*ino),
                _ => false,
            }
        };
        let fine = match errno {
            28 => self.cfg.has(Fault::NoSpace),
            12 => s(Fault::NoMemory),
            // Nothing but zeros follows: whether they are data is the volume's choice.
            6 => matches!(&p.act, Act::Seek { ino, offset, hole: false }
                if self.head.node(*ino).and_then(|n| n.content()).is_some_and(|c| c.blocks.range(offset / 4096..).next().is_none())),
            5 => {
                s(Fault::ReadError)
                    || s(Fault::Misread)
                    || s(Fault::WriteError)
                    || s(Fault::FlushError)
                    || self.aborted
                    || rotten()
            }
            _ => false,
        };
        if !fine {
            return Err(format!(
                "{}: failed with error {errno}, {}",
                p.act.line(),
                must.map_or("it must succeed".to_string(), |l| format!("it must fail with one of {l:?}"))
            ));
        }
        if errno == 28 {
            self.strike(Fault::NoSpace);
            self.cover(Fault::NoSpace, &[p.act.kind()]);
            self.recent[Fault::NoSpace as usize] = 6;
        }
        let undecided = errno == 5 && self.aborted && !p.after_abort && !p.act.reads() && !p.act.syncs();
        if undecided || p.act.fails_halfway(done) {
            let known = Known { ino: None, generation: 0, first_id: None, when: p.when };
            self.history.maybe.push(Entry { act: p.act, known, at: p.at, must: false });
        }
        Ok(())
    }
}

fn describe(r: &Result<Reply, Error>) -> String {
    match r {
        Ok(Reply::Bytes(b)) => format!("{} bytes", b.len()),
        Ok(Reply::Entries(e)) => format!("{} entries", e.len()),
        Ok(other) => format!("{other:?}"),
        Err(e) => format!("error {} ({e:?})", e.errno()),
    }
}
