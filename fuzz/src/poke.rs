// SPDX-License-Identifier: GPL-2.0-only
//! Changes to the bytes of an image, as an input of the target `image` names them: which block, and what becomes of it.

use crate::machine::BLOCK;
use crate::repair::Map;
use arbitrary::Arbitrary;

/// One change of bytes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Poke {
    pub place: Place,
    pub offset: u16,
    pub how: How,
    /// Not only the first copy (without repair).
    pub both: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Place {
    Super(u8),
    Node(u16),
    Log(u16),
    Data(u16),
    Any(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum How {
    Byte(u8),
    Half(u16),
    Word(u32),
    Long(u64),
    Add(i8),
    AddLong(i64),
    Bit(u8),
    /// 36 bytes from another offset: an item's slot.
    Copy(u16),
    Zero,
}

pub fn poke(block: &mut [u8; BLOCK], offset: u16, how: How) {
    let at = usize::from(offset) % BLOCK;
    let mut put = |bytes: &[u8]| {
        let n = bytes.len().min(BLOCK - at);
        block[at..at + n].copy_from_slice(&bytes[..n]);
    };
    match how {
        How::Byte(x) => put(&[x]),
        How::Half(x) => put(&x.to_le_bytes()),
        How::Word(x) => put(&x.to_le_bytes()),
        How::Long(x) => put(&x.to_le_bytes()),
        How::Zero => put(&[0; 64]),
        How::Add(x) => block[at] = block[at].wrapping_add_signed(x),
        How::Bit(x) => block[at] ^= 1 << (x % 8),
        How::AddLong(x) => {
            if let Some(b) = block[at..].first_chunk_mut::<8>() {
                *b = u64::from_le_bytes(*b).wrapping_add_signed(x).to_le_bytes();
            }
        }
        How::Copy(from) => {
            let from = usize::from(from) % BLOCK;
            let n = 36.min(BLOCK - at.max(from));
            block.copy_within(from..from + n, at);
        }
    }
}

/// The block that a place names, and its second copy or 0.
pub fn locate(map: &Map, used: &[u64], place: Place) -> Option<(u64, u64)> {
    let pick = |n: u16, len: usize| if len == 0 { None } else { Some(usize::from(n) % len) };
    Some(match place {
        Place::Super(n) => (map.supers[usize::from(n) % 2], map.supers[(usize::from(n) + 1) % 2]),
        Place::Node(n) => {
            let (addr, node) = map.nodes.iter().nth(pick(n, map.nodes.len())?)?;
            (*addr, node.twin)
        }
        Place::Log(n) => {
            let g = map.groups[pick(n, map.groups.len())?];
            let i = u64::from(n >> 8) % u64::from(g.blocks);
            (g.addr + i, g.twin + i)
        }
        Place::Data(n) => (*map.data.keys().nth(pick(n, map.data.len())?)?, 0),
        Place::Any(n) => (used[pick(n, used.len())?], 0),
    })
}
