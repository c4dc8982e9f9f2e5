// SPDX-License-Identifier: GPL-2.0-only
//! What a power cut leaves. A [`Cut`] ends the log after some entry and says of each write since the last flush
//! whether it arrived, was lost, or was torn at sectors of 512 bytes. What a flush covers, and writes with FUA, have
//! arrived: [`crate::disk::Durable`] knows which those are. Cuts are drawn from a seed, enumerated, or read from text; each prints as the text that gives it again.

use crate::log::{Entry, Log, SECTOR};
use std::collections::BTreeMap;
use std::fmt;
use vexfs_embedded::testing::Random;

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrived.
    Whole,
    /// Nothing of it arrived.
    Lost,
    /// Sectors of 512 bytes of it arrived: those whose bit is set, lowest bit first.
    Torn(Vec<u8>),
}

/// A power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Entries of the log before it.
    pub at: usize,
    /// What became of the volatile writes, by their number in the log; those that are not here are lost.
    pub fates: BTreeMap<usize, Fate>,
    /// Number of volatile writes.
    volatile: usize,
}

/// Sectors of an entry.
fn sectors(e: &Entry) -> u64 {
    e.len / SECTOR
}

impl Cut {
    /// All that was written arrived.
    pub fn all(volatile: &[usize], at: usize) -> Cut {
        Cut { at, fates: volatile.iter().map(|i| (*i, Fate::Whole)).collect(), volatile: volatile.len() }
    }

    /// Nothing volatile arrived.
    pub fn none(volatile: &[usize], at: usize) -> Cut {
        Cut { at, fates: BTreeMap::new(), volatile: volatile.len() }
    }

    /// A random part arrived: nothing, little, half, most or all, and some writes are torn.
    pub fn random(log: &Log, volatile: &[usize], at: usize, seed: u64) -> Cut {
        let mut random = Random::new(seed ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let percent = [0, 10, 50, 90, 100][random.below(5) as usize];
        let mut cut = Cut::none(volatile, at);
        for i in volatile {
            let e = &log.entries[*i];
            let fate = if !e.is_discard() && random.below(8) == 0 {
                Fate::Torn((0..sectors(e).div_ceil(8)).map(|_| random.draw() as u8).collect())
            } else if random.below(100) < percent {
                Fate::Whole
            } else {
                continue;
            };
            cut.fates.insert(*i, fate);
        }
        cut
    }

    /// Every subset of the volatile writes if they are at most `most`; else none, all, each one alone, and all but
    /// each one of the last `most`. Then the last `most` writes torn after each sector, with the others there and
    /// without them.
    pub fn exhaustive(log: &Log, volatile: &[usize], at: usize, most: usize) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let with = |fates: BTreeMap<usize, Fate>| Cut { at, fates, volatile: volatile.len() };
        let recent = &volatile[volatile.len().saturating_sub(most)..];
        if volatile.len() <= most {
            for mask in 0..1u64 << volatile.len() {
                cuts.push(with(
                    volatile
                        .iter()
                        .enumerate()
                        .filter(|(n, _)| mask >> n & 1 == 1)
                        .map(|(_, i)| (*i, Fate::Whole))
                        .collect(),
                ));
            }
        } else {
            cuts.extend([Cut::none(volatile, at), Cut::all(volatile, at)]);
            for one in recent {
                cuts.push(with([(*one, Fate::Whole)].into()));
                cuts.push(with(volatile.iter().filter(|i| *i != one).map(|i| (*i, Fate::Whole)).collect()));
            }
        }
        for one in recent.iter().filter(|i| !log.entries[**i].is_discard()) {
            let n = sectors(&log.entries[*one]);
            // A large write: its first and last sectors, and some between.
            let step = n.div_ceil(16).max(1);
            for torn in (1..n).filter(|t| t % step == 0 || *t == 1 || *t == n - 1) {
                let head = Fate::Torn(mask(n, |s| s < torn));
                let tail = Fate::Torn(mask(n, |s| s >= torn));
                for fate in [head, tail] {
                    let mut all = Cut::all(volatile, at);
                    all.fates.insert(*one, fate.clone());
                    cuts.push(all);
                    cuts.push(with([(*one, fate)].into()));
                }
            }
        }
        cuts
    }

    /// Reads what [`Cut`] prints after `--at N --keep `.
    pub fn parse(log: &Log, volatile: &[usize], at: usize, text: &str) -> Result<Cut, String> {
        match text {
            "all" => return Ok(Cut::all(volatile, at)),
            "none" => return Ok(Cut::none(volatile, at)),
            _ => {}
        }
        let mut cut = Cut::none(volatile, at);
        for word in text.split(',') {
            let (number, torn) = word.split_once(':').map_or((word, None), |(n, t)| (n, Some(t)));
            let (first, last) = number.split_once('-').unwrap_or((number, number));
            let parse = |n: &str| n.parse::<usize>().map_err(|_| format!("{word}: {n} is not the number of an entry"));
            for i in parse(first)?..=parse(last)? {
                if volatile.binary_search(&i).is_err() {
                    return Err(format!("entry {i} is not a volatile write of a cut at {at}"));
                }
                let fate = match torn {
                    None => Fate::Whole,
                    Some(hex) => Fate::Torn(
                        bits(hex, sectors(&log.entries[i]))
                            .ok_or(format!("{word}: {hex} is not a mask of its sectors"))?,
                    ),
                };
                cut.fates.insert(i, fate);
            }
        }
        Ok(cut)
    }

    /// (arrived, torn, lost) writes.
    pub fn counts(&self) -> (usize, usize, usize) {
        let torn = self.fates.values().filter(|f| matches!(f, Fate::Torn(_))).count();
        (self.fates.len() - torn, torn, self.volatile - self.fates.len())
    }
}

fn mask(sectors: u64, set: impl Fn(u64) -> bool) -> Vec<u8> {
    let mut bytes = vec![0; sectors.div_ceil(8) as usize];
    for s in (0..sectors).filter(|s| set(*s)) {
        bytes[(s / 8) as usize] |= 1 << (s % 8);
    }
    bytes
}

/// A mask in hexadecimal, a byte after the other, lowest sectors first.
fn bits(hex: &str, sectors: u64) -> Option<Vec<u8>> {
    if hex.len() as u64 != 2 * sectors.div_ceil(8) || !hex.is_ascii() {
        return None;
    }
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect()
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--at {} --keep ", self.at)?;
        if self.fates.is_empty() {
            return write!(f, "none");
        }
        if self.fates.len() == self.volatile && self.fates.values().all(|x| *x == Fate::Whole) {
            return write!(f, "all");
        }
        for (n, (i, fate)) in self.fates.iter().enumerate() {
            if n > 0 {
                write!(f, ",")?;
            }
            write!(f, "{i}")?;
            if let Fate::Torn(mask) = fate {
                write!(f, ":")?;
                for b in mask {
                    write!(f, "{b:02x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Durable, Trial};
    use crate::log::{LogWriter, DISCARD, FLUSH, FUA};
    use std::collections::HashSet;
    use std::sync::Arc;
    use vexfs_embedded::Device;

    /// Entries: 0 write A, 1 flush, 2 write B (two sectors), 3 FUA write C, 4 discard of A, 5 write D, 6 flush.
    fn log(name: &str) -> Arc<Log> {
        let path = std::env::temp_dir().join(format!("vexfs-cut-{}-{name}", std::process::id()));
        let mut w = LogWriter::create(&path).unwrap();
        w.append(0, 0, 0, &[b'A'; 512]).unwrap();
        w.append(0, 0, FLUSH, &[]).unwrap();
        w.append(512, 0, 0, &[b'B'; 1024]).unwrap();
        w.append(2048, 0, FUA, &[b'C'; 512]).unwrap();
        w.append(0, 512, DISCARD, &[]).unwrap();
        w.append(2560, 0, 0, &[b'D'; 512]).unwrap();
        w.append(0, 0, FLUSH, &[]).unwrap();
        let log = Arc::new(Log::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        log
    }

    /// The first six sectors as letters, a zero as a dot.
    fn show(log: &Arc<Log>, durable: &Durable, cut: &Cut) -> String {
        let trial = Trial::new(log.clone(), None, 4096, durable.state(log, cut));
        let mut b = [0; 4096];
        trial.read_at(0, &mut b).unwrap();
        b.chunks(512).take(6).map(|s| if s[0] == 0 { '.' } else { s[0] as char }).collect()
    }

    fn at(log: &Log, at: usize) -> (Durable, Vec<usize>) {
        let mut durable = Durable::new(0, true);
        durable.advance(log, at);
        let volatile = durable.volatile(log);
        (durable, volatile)
    }

    #[test]
    fn flushed_and_fua_writes_arrive_others_may() {
        let log = log("sets");
        let (durable, volatile) = at(&log, 6);
        assert_eq!(volatile, [2, 4, 5]);
        let all: HashSet<String> =
            Cut::exhaustive(&log, &volatile, 6, 3).iter().map(|c| show(&log, &durable, c)).collect();
        // A is there or discarded, B whole, torn or not there, C always, D or not.
        let mut want = HashSet::new();
        for a in ["A", "."] {
            for b in ["BB", ".."] {
                for d in ["D", "."] {
                    want.insert(format!("{a}{b}.C{d}"));
                }
            }
        }
        for torn in ["B.", ".B"] {
            want.insert(format!("A{torn}.C."));
            want.insert(format!(".{torn}.CD"));
        }
        assert_eq!(all, want);
        // Before the first flush nothing is sure; after the last, everything is.
        let (durable, volatile) = at(&log, 1);
        assert_eq!(
            (volatile.as_slice(), show(&log, &durable, &Cut::none(&volatile, 1)).as_str()),
            (&[0][..], "......")
        );
        let (durable, volatile) = at(&log, 7);
        assert!(volatile.is_empty());
        assert_eq!(show(&log, &durable, &Cut::none(&volatile, 7)), ".BB.CD");
    }

    #[test]
    fn without_flushes_everything_is_volatile() {
        let log = log("noflush");
        let mut durable = Durable::new(1, false);
        durable.advance(&log, 7);
        assert_eq!(durable.volatile(&log), [2, 3, 4, 5]);
        assert_eq!(show(&log, &durable, &Cut::none(&[2, 3, 4, 5], 7)), "A.....");
    }

    #[test]
    fn text_gives_the_cut_again() {
        let log = log("text");
        let (durable, volatile) = at(&log, 6);
        let mut cuts = Cut::exhaustive(&log, &volatile, 6, 3);
        cuts.extend((0..200).map(|seed| Cut::random(&log, &volatile, 6, seed)));
        for cut in cuts {
            let text = cut.to_string();
            let keep = text.strip_prefix("--at 6 --keep ").unwrap();
            let again = Cut::parse(&log, &volatile, 6, keep).unwrap();
            assert_eq!(show(&log, &durable, &cut), show(&log, &durable, &again), "{text}");
        }
        assert_eq!(show(&log, &durable, &Cut::parse(&log, &volatile, 6, "4-5,2:02").unwrap()), "..B.CD");
        for wrong in ["3", "9", "x", "2:", "2:0", "2:0001", "2:zz", "4-9", "18446744073709551615-0"] {
            let parsed = Cut::parse(&log, &volatile, 6, wrong);
            assert!(parsed.is_err() || parsed.is_ok_and(|c| c.fates.is_empty()), "{wrong}");
        }
    }
}
