// SPDX-License-Identifier: GPL-2.0-only
//! Contents: the corners that random histories do not reach.

use super::SIZE_MAX;
use crate::error::Error;
use crate::format::*;
use crate::ns::testing::{Rng, World};
use crate::op::*;
use std::vec;
use std::vec::Vec;

const REG: u32 = 0o100_644;
const MIB: u64 = 1 << 20;

fn file(w: &mut World) -> u64 {
    w.make(ROOT, b"f", REG).unwrap()
}

fn extents(w: &World, ino: u64) -> Vec<(u64, Extent)> {
    let range = Key::first(ino, kind::EXTENT)..=Key::last(ino, kind::EXTENT);
    w.items.map.range(range).map(|(k, v)| (k.offset, Extent::parse(v).unwrap())).collect()
}

#[test]
fn a_write_that_was_kept_back_has_its_own_times() {
    let mut w = World::new(16_384, 8, 0);
    let f = file(&mut w);
    let at = |sec, nsec| Time { sec, nsec };
    let write = |times| Op::Write { ino: f, offset: 3, data: vec![1; 10_000], kill_suid: false, times };
    assert!(matches!(
        w.run(&write(Some(WriteTimes { mtime: at(77, 5), ctime: at(78, 6) }))),
        Ok(Reply::Written(10_000))
    ));
    let a = w.attr(f).unwrap();
    assert_eq!((a.mtime, a.ctime, a.size), (at(77, 5), at(78, 6), 10_003));
    let wrong = Some(WriteTimes { mtime: at(1, 1_000_000_000), ctime: at(1, 0) });
    assert_eq!(w.run(&write(wrong)).unwrap_err(), Error::Invalid);
    w.run(&write(None)).unwrap();
    let a = w.attr(f).unwrap();
    assert!(a.mtime != at(77, 5) && a.ctime == a.mtime);
    w.check();
}

#[test]
fn appends_become_full_extents() {
    let mut w = World::new(16_384, 8, 0);
    let f = file(&mut w);
    // An allocator that always goes on where it was: the file is one run on the device.
    let mut rng = Rng(3);
    let mut want = Vec::new();
    while want.len() < 8_000_000 {
        let data = vec![rng.next() as u8 | 1; 1 + rng.below(40_000) as usize];
        w.rng = Rng(1_000_003); // below(4) is not 0: never scatters
        w.write(f, want.len() as u64, &data).unwrap();
        want.extend(data);
    }
    assert!(w.pread(f, 0, usize::MAX).unwrap() == want);
    let blocks: Vec<u32> = extents(&w, f).iter().map(|(_, e)| e.blocks).collect();
    // Rewriting the ragged last block takes a fresh one each time, so that runs end; but none is short for no reason.
    let total: u32 = blocks.iter().sum();
    assert_eq!(u64::from(total), (want.len() as u64).div_ceil(4096));
    w.check();
    // Whole blocks in order fill extents to the brim.
    let g = w.make(ROOT, b"g", REG).unwrap();
    for n in 0..1000u64 {
        w.rng = Rng(1_000_003);
        w.write(g, n * 4096, &[n as u8; 4096]).unwrap();
    }
    let e = extents(&w, g);
    let joins =
        e.windows(2).filter(|p| p[0].1.addr + u64::from(p[0].1.blocks) == p[1].1.addr).all(|p| p[0].1.blocks == 240);
    assert!(joins, "{e:?}");
    w.check();
}

#[test]
fn extents_of_another_generation_stay_apart() {
    let mut w = World::new(4096, 8, 0);
    let f = file(&mut w);
    for n in 0..4u64 {
        w.rng = Rng(1_000_003);
        w.write(f, n * 4096, &[1; 4096]).unwrap();
        if n == 1 {
            w.items.info.generation += 1;
        }
    }
    let e = extents(&w, f);
    assert_eq!(e.iter().map(|(_, e)| (e.birth, e.blocks)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
}

#[test]
fn damage_is_an_error_and_nothing_else_is() {
    let mut w = World::new(4096, 8, 0);
    let f = file(&mut w);
    let data: Vec<u8> = (0..50_000u32).map(|i| (i % 251) as u8).collect();
    w.write(f, 0, &data).unwrap();
    let (start, e) = extents(&w, f)[0];
    let victim = e.addr + 2;
    let block = (start + 2) * 4096;
    w.disk.get_mut(&victim).unwrap()[4000] ^= 1;
    assert_eq!(w.pread(f, block, 1), Err(Error::Corrupt));
    assert_eq!(w.pread(f, 0, 50_000), Err(Error::Corrupt));
    assert_eq!(w.pread(f, block + 4096, 100).unwrap(), data[block as usize + 4096..][..100]);
    assert_eq!(w.pread(f, block - 1, 1).unwrap(), data[block as usize - 1..][..1]);
    // Writing a part of the block has to read the rest: refused. Writing it whole heals.
    assert_eq!(w.write(f, block + 5, b"x"), Err(Error::Corrupt));
    assert_eq!(w.truncate(f, block + 5), Err(Error::Corrupt));
    assert_eq!(w.write(f, block, &[9; 4096]), Ok(4096));
    assert_eq!(w.pread(f, block + 4000, 1).unwrap(), [9]);
    w.check();
    // A write that was lost: the block still holds what was there before.
    let (_, e) = extents(&w, f)[0];
    w.disk.insert(e.addr, vec![0xee; 4096]);
    assert_eq!(w.pread(f, 0, 10), Err(Error::Corrupt));
}

#[test]
fn holes_and_limits() {
    let mut w = World::new(4096, 8, 0);
    let f = file(&mut w);
    let dir = w.make(ROOT, b"d", 0o040_755).unwrap();
    assert_eq!(w.write(dir, 0, b"x"), Err(Error::IsDirectory));
    assert_eq!(w.pread(dir, 0, 1), Err(Error::IsDirectory));
    assert_eq!(w.write(f, SIZE_MAX - 2, b"abc"), Ok(2));
    assert_eq!(w.write(f, SIZE_MAX, b"abc"), Err(Error::FileTooBig));
    assert_eq!(w.write(f, u64::MAX, b"abc"), Err(Error::FileTooBig));
    assert_eq!(w.write(f, u64::MAX, b""), Ok(0));
    assert_eq!(w.attr(f).unwrap().size, SIZE_MAX);
    assert_eq!(w.pread(f, SIZE_MAX - 3, 100).unwrap(), b"\0ab");
    assert_eq!(w.pread(f, SIZE_MAX, 100).unwrap(), b"");
    assert_eq!(w.pread(f, u64::MAX, usize::MAX).unwrap(), b"");
    assert_eq!(w.seek(f, 0, false), Ok(SIZE_MAX - 4096));
    assert_eq!(w.seek(f, 5, true), Ok(5));
    assert_eq!(w.seek(f, SIZE_MAX - 1, true), Ok(SIZE_MAX));
    assert_eq!(w.seek(f, SIZE_MAX, true), Err(Error::NoSuchOffset));
    assert_eq!(w.truncate(f, SIZE_MAX + 1), Err(Error::FileTooBig));
    assert_eq!(w.fallocate(f, 0, SIZE_MAX - 5, 6), Err(Error::FileTooBig));
    assert_eq!(w.fallocate(f, 0, u64::MAX, 6), Err(Error::FileTooBig));
    assert_eq!(w.fallocate(f, FALLOC_PUNCH_HOLE, 0, 6), Err(Error::NotSupported));
    assert_eq!(w.fallocate(f, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, SIZE_MAX), Ok(()));
    assert_eq!(w.attr(f).unwrap().blocks, 0);
    // An 8 GiB file with a hole takes what was written.
    w.truncate(f, 0).unwrap();
    w.write(f, 8 << 30, b"end").unwrap();
    assert_eq!(w.attr(f).unwrap().blocks, 1);
    assert_eq!(w.pread(f, (8 << 30) - 5, 10).unwrap(), b"\0\0\0\0\0end");
    // Long reads come back short.
    assert_eq!(w.pread(f, 0, usize::MAX).unwrap().len(), super::READ_MAX);
    w.check();
}

#[test]
fn a_large_truncate_is_finished_before_the_file_grows() {
    for one_in in [0, 5] {
        let mut w = World::new(16_384, 8, one_in);
        let f = file(&mut w);
        for n in 0..700u64 {
            w.write(f, n * 8192, &[7; 100]).unwrap();
        }
        w.auto_trim = false;
        w.truncate(f, 8192 * 10 + 50).unwrap();
        assert_eq!(w.trims, [f]);
        assert!(w.items.map.contains_key(&Key::new(0, kind::TRIM, f)));
        w.check();
        // What waits is no longer part of the file.
        let Reply::Extents(v) = w.run(&Op::Extents { ino: f, offset: 0, len: u64::MAX, max: 999 }).unwrap() else {
            panic!()
        };
        assert_eq!(v.len(), 11);
        // Growing: nothing of the old contents may come back.
        w.truncate(f, 8192 * 700).unwrap();
        assert!(!w.items.map.contains_key(&Key::new(0, kind::TRIM, f)));
        assert_eq!(w.attr(f).unwrap().blocks, 11);
        assert_eq!(w.seek(f, 8192 * 10 + 4096, false), Err(Error::NoSuchOffset));
        let tail = w.pread(f, 8192 * 10, 4096).unwrap();
        assert!(tail[..50].iter().all(|b| *b == 7) && tail[50..].iter().all(|b| *b == 0));
        w.check();
        w.run_trims();
        w.check();
        // The same, but the next operation is a write, and then the end of the file while a trim waits.
        for n in 0..700u64 {
            w.write(f, n * 8192, &[7; 100]).unwrap();
        }
        w.truncate(f, 0).unwrap();
        w.write(f, 4096 * 3, b"x").unwrap();
        assert_eq!(w.attr(f).unwrap().blocks, 1);
        w.check();
        for n in 0..700u64 {
            w.write(f, n * 8192, &[7; 100]).unwrap();
        }
        w.truncate(f, 0).unwrap();
        w.unlink(ROOT, b"f").unwrap();
        w.check();
        w.run_trims();
        assert_eq!(w.used(), 0);
        assert_eq!(w.items.map.len(), 1);
        w.check();
    }
}

#[test]
fn small_truncates_are_one_transaction() {
    let mut w = World::new(4096, 8, 0);
    let f = file(&mut w);
    w.write(f, 0, &vec![1; 100_000]).unwrap();
    w.auto_trim = false;
    w.truncate(f, 0).unwrap();
    assert!(w.trims.is_empty());
    assert_eq!(w.used(), 0);
    w.write(f, 0, b"new").unwrap();
    assert_eq!(w.pread(f, 0, 10).unwrap(), b"new");
    w.check();
}

#[test]
fn preallocated_space_is_there_when_the_disk_is_full() {
    for ignore_place in [false, true] {
        let mut w = World::new(4096, 8, 0);
        let f = file(&mut w);
        w.fallocate(f, 0, 0, MIB).unwrap();
        assert_eq!(w.attr(f).unwrap().size, MIB);
        assert!(w.pread(f, 0, MIB as usize).unwrap().iter().all(|b| *b == 0));
        assert_eq!(w.seek(f, 0, false), Err(Error::NoSuchOffset));
        let hog = w.make(ROOT, b"hog", REG).unwrap();
        let mut at = 0;
        for size in [300_000, 4096] {
            loop {
                match w.write(hog, at, &vec![8; size]) {
                    Ok(n) => at = (at + n as u64).next_multiple_of(4096),
                    Err(e) => {
                        assert_eq!(e, Error::NoSpace);
                        break;
                    }
                }
            }
        }
        w.ignore_place = ignore_place;
        let result = w.write(f, 100, &vec![5; 500_000]);
        if ignore_place {
            assert_eq!(result, Err(Error::NoSpace));
        } else {
            assert_eq!(result, Ok(500_000));
            let got = w.pread(f, 0, MIB as usize).unwrap();
            assert!(got[..100].iter().all(|b| *b == 0) && got[100..500_100].iter().all(|b| *b == 5));
            assert!(got[500_100..].iter().all(|b| *b == 0));
            assert_eq!(w.attr(f).unwrap().blocks, 256);
            // Written once: from now on it is copy-on-write like everything else.
            assert_eq!(w.write(f, 4096, &[6; 4096]), Err(Error::NoSpace));
        }
        w.check();
        // Deleting works on a full disk, and gives the space back.
        w.unlink(ROOT, b"hog").unwrap();
        w.write(f, 4096, &[6; 4096]).unwrap();
        assert_eq!(w.pread(f, 4096, 1).unwrap(), [6]);
        w.check();
    }
}

#[test]
fn a_full_disk_gives_short_writes_and_clean_failures() {
    let mut w = World::new(1024, 8, 0);
    let f = file(&mut w);
    let n = w.write(f, 0, &vec![3; 8 << 20]).unwrap();
    assert!(n as u64 >= MIB && (n as u64) < 4 * MIB && n % 4096 == 0, "{n}");
    assert_eq!(w.attr(f).unwrap().size, n as u64);
    assert!(w.pread(f, 0, 8 << 20).unwrap() == vec![3; n]);
    w.check();
    // A preallocation that cannot succeed takes nothing; one larger than the device fails at once.
    let g = w.make(ROOT, b"g", REG).unwrap();
    let before = w.used();
    assert_eq!(w.fallocate(g, 0, 0, 3 * MIB), Err(Error::NoSpace));
    assert_eq!(w.fallocate(g, 0, 0, 1 << 61), Err(Error::NoSpace));
    assert_eq!(w.used(), before);
    w.truncate(f, 0).unwrap();
    assert_eq!(w.fallocate(g, FALLOC_KEEP_SIZE, 0, 3 * MIB), Ok(()));
    assert_eq!((w.attr(g).unwrap().size, w.attr(g).unwrap().blocks), (0, 768));
    w.write(g, 0, b"x").unwrap();
    w.truncate(g, 0).unwrap();
    assert_eq!(w.attr(g).unwrap().blocks, 0);
    w.check();
}

#[test]
fn large_preallocation_takes_several_steps() {
    let mut w = World::new(1 << 17, 8, 0);
    let f = file(&mut w);
    w.write(f, 40 << 20, &[1; 5000]).unwrap();
    let steps = w.steps;
    w.fallocate(f, 0, 5, 200 << 20).unwrap();
    assert!(w.steps - steps > 12);
    let a = w.attr(f).unwrap();
    assert_eq!((a.size, a.blocks), ((200 << 20) + 5, 200 * 256 + 1));
    assert_eq!(w.pread(f, 40 << 20, 5001).unwrap()[4999..], [1, 0]);
    w.check();
    w.fallocate(f, FALLOC_ZERO_RANGE, 40 << 20, 4096 + 4).unwrap();
    assert_eq!(w.seek(f, 0, false), Ok((40 << 20) + 4096));
    assert_eq!(w.pread(f, 40 << 20, 5001).unwrap()[4090..4105], [[0; 10].as_slice(), &[1; 5]].concat());
    assert_eq!(w.attr(f).unwrap().blocks, 200 * 256 + 1);
    w.check();
}

#[test]
fn a_preallocated_run_that_went_is_not_mapped() {
    use crate::data::{commit, prepare, Placement};
    use crate::txn::Progress;
    let mut w = World::new(4096, 8, 0);
    let f = file(&mut w);
    w.fallocate(f, 0, 0, 8192).unwrap();
    let op = Op::Write { ino: f, offset: 0, data: vec![1; 8192], kill_suid: false, times: None };
    let plan = w.read(|t| prepare(t, &op, &Progress::default())).unwrap();
    let addr = plan.runs[0].place;
    assert_ne!(addr, 0);
    w.truncate(f, 0).unwrap();
    let placed = [Placement { file_block: 0, addr, blocks: 2, crcs: vec![1, 2] }];
    let r = w.change(|t| commit(t, &op, &mut Progress::default(), &plan, &placed).map(|_| ()));
    assert_eq!(r, Err(Error::Stale));
    w.check();
}

#[test]
fn times_and_set_id_bits() {
    let mut w = World::new(4096, 8, 0);
    let f = w.make(ROOT, b"f", 0o106_755).unwrap();
    w.now = Time { sec: 2000, nsec: 5 };
    w.write(f, 0, b"").unwrap();
    assert_eq!(w.attr(f).unwrap().mtime.sec, 1000);
    w.write(f, 0, b"x").unwrap();
    let a = w.attr(f).unwrap();
    assert_eq!((a.mtime, a.ctime, a.atime.sec, a.mode), (w.now, w.now, 1000, 0o106_755));
    w.run(&Op::Write { ino: f, offset: 0, data: b"y".to_vec(), kill_suid: true, times: None }).unwrap();
    assert_eq!(w.attr(f).unwrap().mode, 0o100_755);
    // ftruncate to the same size changes the times.
    w.now = Time { sec: 3000, nsec: 5 };
    w.truncate(f, 1).unwrap();
    assert_eq!((w.attr(f).unwrap().mtime, w.attr(f).unwrap().ctime), (w.now, w.now));
    w.now = Time { sec: 4000, nsec: 5 };
    w.fallocate(f, FALLOC_KEEP_SIZE, 0, 4096).unwrap();
    assert_eq!(w.attr(f).unwrap().ctime, w.now);
}
