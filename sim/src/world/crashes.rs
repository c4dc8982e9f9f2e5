// SPDX-License-Identifier: GPL-2.0-only
//! What happens to a run as a whole: crashes, opening again, closing, rot; and the comparison of what is there
//! afterwards with the history.

use super::*;

impl World {
    /// Crashes and other things that happen to a volume.
    pub(super) fn events(&mut self) -> Res<()> {
        let every = self.cfg.crash_every;
        let hot = self.hot > 0 && self.rng.chance(1, 25);
        if hot || self.rng.chance(1, every) {
            self.hot = 0;
            let (cut, kill) = (self.cfg.has(Fault::PowerCut), self.cfg.has(Fault::Kill));
            let power = cut && (!kill || self.rng.chance(2, 3));
            let probe = self.rng.chance(2, 3);
            return self.crash(if power { End::Power } else { End::Kill }, probe);
        }
        if (self.aborted || !self.history.maybe.is_empty()) && self.rng.chance(1, 30) {
            return self.reopen();
        }
        if self.rng.chance(1, 4 * every) && !self.aborted {
            self.close()?;
            self.open(None)?;
            return self.resume(End::Power);
        }
        if self.cfg.has(Fault::BitRot) && self.rng.chance(1, 300) && !self.aborted {
            return self.rot();
        }
        Ok(())
    }

    /// The world at this moment, in which the power is cut or the process killed.
    pub(super) fn crash(&mut self, end: End, probe: bool) -> Res<()> {
        let interrupted: Vec<usize> = self.ops.iter().map(|p| p.act.kind()).collect();
        let mut history = self.history.clone();
        for p in &self.ops {
            if !p.act.reads() && !p.act.syncs() && !p.after_abort {
                let known = Known { ino: None, generation: 0, first_id: None, when: p.when };
                history.maybe.push(Entry { act: p.act.clone(), known, at: p.at, must: false });
            }
        }
        let mut end = end;
        let mut rng = Rng::new(self.rng.u64(), 9);
        let disk = if end == End::Power {
            self.strike(Fault::PowerCut);
            let (disk, cut) = self.disk.cut(&mut rng);
            for (f, n) in [(Fault::Lost, cut.lost), (Fault::Torn, cut.torn), (Fault::Reordered, cut.reordered)] {
                if n > 0 {
                    self.strike(f);
                }
            }
            self.say(|| format!("power cut{}: {cut:?}", if probe { " (a look)" } else { "" }));
            disk
        } else {
            self.strike(Fault::Kill);
            let mut disk = self.disk.clone();
            // Acknowledged changes may have been in memory only.
            if disk.kill(&mut rng) || self.cfg.write_behind {
                end = End::Power;
            }
            self.say(|| format!("kill{}", if probe { " (a look)" } else { "" }));
            disk
        };
        let mut side = World {
            disk,
            vol: None,
            rng: Rng::new(self.rng.u64(), 10),
            io: Vec::new(),
            ops: Vec::new(),
            head: State::default(),
            history,
            trace: self.trace,
            tally: Tally::default(),
            quiet: false,
            opening: false,
            aborted: false,
            dropped: false,
            failed_reads: BTreeSet::new(),
            troubled: false,
            damaged: self.damaged,
            strikes: [0; FAULTS.len()],
            interrupted,
            recent: [0; FAULTS.len()],
            hot: 0,
            canary: self.canary,
            cfg: self.cfg.clone(),
            now: self.now,
            verbose: self.verbose,
        };
        let result = side.open(Some(end)).and_then(|()| side.resume(end));
        side.tally.states += 1;
        if probe {
            side.count_stats();
            self.tally.add(&side.tally);
            self.trace = side.trace;
            return result;
        }
        self.count_stats();
        side.tally.crashes += 1;
        side.tally.add(&self.tally);
        *self = side;
        result
    }

    /// The volume has failed and is opened again by a new process.
    pub(super) fn reopen(&mut self) -> Res<()> {
        self.crash(End::Kill, false)
    }

    /// Opens the volume, through crashes and faults on the way.
    pub(super) fn open(&mut self, end: Option<End>) -> Res<()> {
        let mut cuts = 0;
        for attempt in 0..40 {
            // After a few failures the weather gets better.
            self.quiet = end.is_none() || attempt > 6;
            self.opening = true;
            self.failed_reads.clear();
            self.io.clear();
            let (env, blocks, now) = (self.env(), self.disk.blocks(), time(self.now));
            let oom = self.cfg.has(Fault::NoMemory) && !self.quiet;
            if oom && !alloc::pending() {
                alloc::schedule(self.rng.below(2 * self.cfg.oom_every), 1);
            }
            let before = alloc::failed();
            let opened = {
                let _armed = oom.then(alloc::armed);
                let options = Options { write_behind: self.cfg.write_behind, ..Options::default() };
                Volume::open(env, blocks, options, now)
            };
            let oom_struck = alloc::failed() != before;
            if oom_struck {
                self.strike(Fault::NoMemory);
            }
            match opened {
                Ok(mut v) => {
                    if self.canary != Canary::None {
                        v.set_canary(self.canary.engine());
                    }
                    self.vol = Some(v);
                }
                Err(e) if oom_struck => {
                    self.say(|| format!("open: {e}"));
                    continue;
                }
                Err(e) => return Err(format!("open: {e}")),
            }
            let cut_at = if end.is_some()
                && !self.quiet
                && cuts < 3
                && self.cfg.has(Fault::CrashInRecovery)
                && self.rng.chance(1, 2)
            {
                self.rng.range(1, 40)
            } else {
                u64::MAX
            };
            let mut steps = 0;
            let mut idle = 0;
            let again = loop {
                match self.state() {
                    VolState::Ready => break false,
                    VolState::Failed(e) => {
                        let struck: u64 = [Fault::ReadError, Fault::WriteError, Fault::FlushError, Fault::NoMemory]
                            .iter()
                            .map(|f| self.strikes[*f as usize])
                            .sum();
                        if self.quiet || struck == 0 {
                            return Err(format!("the volume cannot be opened: {e}"));
                        }
                        self.say(|| format!("open failed: {e}"));
                        break true;
                    }
                    VolState::Aborted | VolState::Closed => break true,
                    VolState::Opening => {}
                }
                steps += 1;
                if steps >= cut_at && !self.io.is_empty() {
                    cuts += 1;
                    self.strikes[Fault::CrashInRecovery as usize] += 1;
                    self.tally.strikes[Fault::CrashInRecovery as usize] += 1;
                    let kinds = self.interrupted.clone();
                    self.cover(Fault::CrashInRecovery, &kinds);
                    let mut rng = Rng::new(self.rng.u64(), 11);
                    if end == Some(End::Power) {
                        self.disk = self.disk.cut(&mut rng).0;
                    } else {
                        self.dropped |= self.disk.kill(&mut rng);
                    }
                    self.say(|| "crash during recovery".into());
                    break true;
                }
                let moved = self.turn()?;
                idle = if moved { 0 } else { idle + 1 };
                if idle > 2000 {
                    return Err(format!(
                        "opening the volume hangs, with nothing under way on the disk: {:?}",
                        self.vol
                    ));
                }
                if steps > 2_000_000 {
                    return Err("opening the volume does not end".into());
                }
            };
            self.count_if(again);
            if !again {
                self.opening = false;
                self.aborted = false;
                self.troubled = self.strikes[Fault::ReadError as usize] > 0;
                self.strikes = [0; FAULTS.len()];
                self.strikes[Fault::ReadError as usize] = u64::from(self.troubled);
                self.quiet = false;
                return Ok(());
            }
            if end == Some(End::Power) || end == Some(End::Kill) {
                let mut rng = Rng::new(self.rng.u64(), 12);
                self.dropped |= self.disk.kill(&mut rng);
            }
        }
        Err("the volume could not be opened in 40 attempts".into())
    }

    pub(super) fn count_if(&mut self, again: bool) {
        if again {
            self.count_stats();
            self.vol = None;
        }
    }

    /// After a crash: reads everything back and finds out which moment it is.
    pub(super) fn resume(&mut self, end: End) -> Res<()> {
        let quiet = std::mem::replace(&mut self.quiet, true);
        let end = if std::mem::take(&mut self.dropped) { End::Power } else { end };
        let (mut seen, mut damaged) = oracle::observe(self)?;
        if damaged && self.troubled {
            // Reads failed while collections were brought in. Nothing must be lost by that: look again.
            self.drain()?;
            self.count_stats();
            self.vol = None;
            self.open(None)?;
            self.quiet = true;
            (seen, damaged) = oracle::observe(self)?;
        }
        if damaged {
            return Err("vectors are damaged, which nothing has damaged".into());
        }
        let (state, found) = self.history.explain(&seen, end == End::Kill)?;
        oracle::check_files(&state, &seen)?;
        self.trace.word(0x3000 + state.nodes.len() as u64);
        self.head = state;
        self.learn(&seen);
        self.spot_check()?;
        // The checker reads the disk as it is: nothing may be on its way there.
        self.drain()?;
        if self.rng.chance(1, 2) {
            let damaged = self.damaged || self.head.any_rotten();
            crate::format::check(&self.disk, self.env(), damaged)?;
        }
        if end == End::Power {
            // What is on the disk now has survived: it is where the history begins again.
            self.history = History { base: self.head.clone(), ..History::default() };
        } else {
            self.history.maybe.clear();
            self.history.entries.extend(found);
        }
        self.quiet = quiet;
        Ok(())
    }

    /// Takes over what the model only knew within bounds.
    pub(super) fn learn(&mut self, seen: &State) {
        for (ino, n) in &seen.nodes {
            let Some(m) = self.head.node_mut(*ino) else { continue };
            (m.atime, m.mtime, m.ctime, m.btime) = (n.atime, n.mtime, n.ctime, n.btime);
            (m.stale, m.generation) = (n.stale, n.generation);
            if let (Some(c), Some(d)) = (&mut m.coll, &n.coll) {
                c.populating = d.populating;
            }
            if let (Body::File(c), Body::File(d)) = (&mut m.body, &n.body) {
                c.rotten.clone_from(&d.rotten);
            }
        }
    }

    /// Searches every collection, exactly and approximately.
    pub(super) fn spot_check(&mut self) -> Res<()> {
        let colls: Vec<_> = self.head.nodes.iter().filter_map(|(i, n)| Some((*i, n.coll.as_ref()?.clone()))).collect();
        for (dir, c) in colls {
            for (exact, ef) in [(true, 0), (false, 1000)] {
                let q: Vec<u32> = (0..c.dim).map(|_| (self.rng.below(9) as f32 - 4.5).to_bits()).collect();
                let req = VecAct::Search { queries: vec![q.into()], k: 20, filter: None, radius: None, exact, ef };
                let act = Act::Vec { dir, req, durable: false };
                let reply = self.ask(act.op())?.map_err(|e| format!("{}: {e}", act.line()))?;
                if let Reply::Bytes(b) = &reply {
                    let status = frames::reply(b)?.0.status;
                    if status != 0 {
                        return Err(format!("{}: error {status}", act.line()));
                    }
                }
                let told =
                    oracle::check_reply(&self.head, &act, &reply, false).map_err(|e| format!("{}: {e}", act.line()))?;
                self.tally.recall.0 += told.learned.recall.0;
                self.tally.recall.1 += told.learned.recall.1;
            }
        }
        Ok(())
    }

    /// An orderly end; then the power goes, and everything must be there.
    pub(super) fn close(&mut self) -> Res<()> {
        let quiet = std::mem::replace(&mut self.quiet, true);
        self.drain()?;
        if self.aborted || self.state() == VolState::Aborted {
            self.watch()?;
            self.reopen()?;
            self.quiet = true;
        }
        match self.ask(Op::Close)? {
            Ok(_) => {}
            Err(e) => return Err(format!("close: {e}")),
        }
        if self.state() != VolState::Closed {
            return Err(format!("after close the volume is {:?}", self.state()));
        }
        self.drain()?;
        let n = self.history.len();
        self.history.durable(n);
        let mut rng = Rng::new(self.rng.u64(), 13);
        self.disk = self.disk.cut(&mut rng).0;
        self.count_stats();
        self.vol = None;
        self.quiet = quiet;
        if self.full_check_after_close() {
            self.open(None)?;
            self.resume(End::Power)?;
        }
        Ok(())
    }

    pub(super) fn full_check_after_close(&self) -> bool {
        true
    }

    /// Damages blocks on the disk that nothing is going on with.
    pub(super) fn rot(&mut self) -> Res<()> {
        self.quiet = true;
        self.drain()?;
        if self.state() == VolState::Aborted {
            self.quiet = false;
            return Ok(());
        }
        for op in [Op::Sync, Op::Checkpoint, Op::Sync] {
            if let Err(e) = self.ask(op)? {
                return Err(format!("sync before bit rot: {e}"));
            }
        }
        let n = self.history.len();
        self.history.durable(n);
        self.strike(Fault::BitRot);
        self.damaged = true;
        let files: Vec<u64> = self
            .head
            .nodes
            .iter()
            .filter(|(_, n)| n.content().is_some_and(|c| !c.blocks.is_empty()))
            .map(|(i, _)| *i)
            .collect();
        if !files.is_empty() && self.rng.chance(3, 4) {
            let ino = *self.rng.pick(&files);
            let list = match self.ask(Op::Extents { ino, offset: 0, len: u64::MAX, max: 1 << 20 })? {
                Ok(Reply::Extents(l)) => l,
                other => return Err(format!("extents of {ino}: {other:?}")),
            };
            let written: Vec<_> = list.iter().filter(|e| !e.unwritten).collect();
            if !written.is_empty() {
                let e = **self.rng.pick(&written);
                let i = self.rng.below(e.len / 4096);
                let mut rng = Rng::new(self.rng.u64(), 14);
                self.disk.rot(e.physical / 4096 + i, &mut rng);
                let block = e.logical / 4096 + i;
                self.say(|| format!("block {block} of inode {ino} rots (device block {})", e.physical / 4096 + i));
                for s in [&mut self.head, &mut self.history.base] {
                    if let Some(Body::File(c)) = s.node_mut(ino).map(|n| &mut n.body) {
                        c.rotten.insert(block);
                    }
                }
            }
        }
        if self.cfg.copies == 2 {
            // One copy of metadata, always of the same side: the other must serve.
            let side = self.cfg.seed % 2;
            let meta: Vec<u64> =
                self.disk.used().into_iter().filter(|b| crate::format::copy_of(&self.disk, *b) == Some(side)).collect();
            if !meta.is_empty() {
                for _ in 0..self.rng.range(1, 3) {
                    let b = *self.rng.pick(&meta);
                    let mut rng = Rng::new(self.rng.u64(), 15);
                    self.disk.rot(b, &mut rng);
                    self.say(|| format!("metadata block {b} rots"));
                }
            }
        }
        self.quiet = false;
        Ok(())
    }
}
