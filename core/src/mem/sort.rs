// SPDX-License-Identifier: GPL-2.0-only
//! Heapsort: in place, without recursion and with a small frame, which `sort_unstable` is not.

/// Sorts `v` so that `less(b, a)` holds for no `a` before `b`. Equal elements come in any order.
pub fn sort_by<T>(v: &mut [T], mut less: impl FnMut(&T, &T) -> bool) {
    for root in (0..v.len() / 2).rev() {
        sink(v, root, &mut less);
    }
    for end in (1..v.len()).rev() {
        swap(v, 0, end);
        if let Some(heap) = v.get_mut(..end) {
            sink(heap, 0, &mut less);
        }
    }
}

/// Swaps two elements; nothing happens if one of them does not exist. (`slice::swap` would panic.)
pub fn swap<T>(v: &mut [T], i: usize, j: usize) {
    let (first, second) = if i < j { (i, j) } else { (j, i) };
    if let Some((before, from)) = v.split_at_mut_checked(second) {
        if let (Some(a), Some(b)) = (before.get_mut(first), from.first_mut()) {
            core::mem::swap(a, b);
        }
    }
}

/// Moves the element at `at` down until none below it is larger.
pub fn sink<T>(v: &mut [T], mut at: usize, less: &mut impl FnMut(&T, &T) -> bool) {
    loop {
        let left = at.wrapping_mul(2).wrapping_add(1);
        let right = left.wrapping_add(1);
        let Some(l) = v.get(left) else { return };
        let (down, x) = match v.get(right) {
            Some(r) if less(l, r) => (right, r),
            _ => (left, l),
        };
        match v.get(at) {
            Some(a) if less(a, x) => swap(v, at, down),
            _ => return,
        }
        at = down;
    }
}

/// Rounds of [`select`] after which it sorts instead.
const ROUNDS: usize = 64;

/// Moves the `n` smallest to the front, in no order (quickselect, Hoare 1961). Numbers that keep misleading it are sorted.
pub fn select(v: &mut [u64], mut n: usize) {
    let mut part = v;
    for _ in 0..ROUNDS {
        let (Some(a), Some(c)) = (part.first().copied(), part.last().copied()) else { return };
        if n == 0 || n >= part.len() {
            return;
        }
        let b = part.get(part.len() / 2).copied().unwrap_or(a);
        let pivot = a.min(b).max(a.max(b).min(c));
        let mut less = 0usize;
        for i in 0..part.len() {
            let x = part.get(i).copied().unwrap_or(0);
            swap(part, i, less);
            // A number instead of a branch: nobody could foretell it.
            less = less.wrapping_add(usize::from(x < pivot));
        }
        if n <= less {
            part = part.get_mut(..less).unwrap_or(&mut []);
            continue;
        }
        let mut same = less;
        for i in less..part.len() {
            let x = part.get(i).copied().unwrap_or(0);
            swap(part, i, same);
            same = same.wrapping_add(usize::from(x == pivot));
        }
        if n <= same {
            return;
        }
        n = n.wrapping_sub(same);
        part = part.get_mut(same..).unwrap_or(&mut []);
    }
    sort_by(part, |a, b| a < b);
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    #[test]
    fn sorts() {
        let mut x = 7u64;
        for n in 0..300 {
            let mut v: Vec<u64> = Vec::new();
            for _ in 0..n {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                v.push((x >> 33) % (n / 2 + 1));
            }
            let mut w = v.clone();
            w.sort_by(|a, b| b.cmp(a));
            super::sort_by(&mut v, |a, b| a > b);
            assert_eq!(v, w);
        }
    }

    #[test]
    fn selects() {
        let mut x = 9u64;
        for n in 0..300usize {
            let mut v: Vec<u64> = Vec::new();
            for i in 0..n {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                // Mixed, with many twins, all equal, in order.
                v.push([x >> 3, (x >> 33) % 7, 5, i as u64][n % 4]);
            }
            for keep in [0, 1, n / 3, n.saturating_sub(1), n, n + 5] {
                let (mut s, mut all) = (v.clone(), v.clone());
                super::select(&mut s, keep);
                all.sort_unstable();
                let mut front = s[..keep.min(n)].to_vec();
                front.sort_unstable();
                assert_eq!(front, all[..keep.min(n)]);
                s.sort_unstable();
                assert_eq!(s, all);
            }
        }
    }
}
