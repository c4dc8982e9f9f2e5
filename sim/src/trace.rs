// SPDX-License-Identifier: GPL-2.0-only
//! The running hash over everything that happens in a run: two runs of one seed must end with the
//! same hash, or something outside the seed has a say.

/// A 128-bit hash that takes words in. Not cryptographic: nobody attacks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trace {
    a: u64,
    b: u64,
    events: u64,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { a: 0x9e37_79b9_7f4a_7c15, b: 0xc2b2_ae3d_27d4_eb4f, events: 0 }
    }
}

impl Trace {
    /// Takes a word in.
    pub fn word(&mut self, x: u64) {
        self.a = (self.a ^ x).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
        self.b = (self.b.rotate_left(23) ^ x.rotate_left(17)).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ self.a;
        self.events += 1;
    }

    /// Takes bytes in.
    pub fn bytes(&mut self, b: &[u8]) {
        self.word(b.len() as u64);
        let mut chunks = b.chunks_exact(8);
        for c in &mut chunks {
            self.word(u64::from_le_bytes(c.try_into().unwrap_or_default()));
        }
        let mut last = [0; 8];
        last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        self.word(u64::from_le_bytes(last));
    }

    /// The hash as text.
    pub fn hex(&self) -> String {
        format!("{:016x}{:016x}", self.a ^ self.events, self.b)
    }
}

#[cfg(test)]
mod tests {
    use super::Trace;

    #[test]
    fn order_and_content_matter() {
        let hash = |words: &[u64]| {
            let mut t = Trace::default();
            words.iter().for_each(|w| t.word(*w));
            t.hex()
        };
        assert_eq!(hash(&[1, 2, 3]), hash(&[1, 2, 3]));
        assert_ne!(hash(&[1, 2, 3]), hash(&[1, 3, 2]));
        assert_ne!(hash(&[0]), hash(&[0, 0]));
        assert_ne!(hash(&[]), hash(&[0]));
    }
}
