// SPDX-License-Identifier: GPL-2.0-only
//! The .fvecs and .ivecs formats: rows of an int32 dimension and that many float32 or int32 numbers.

use super::{check_dim, open, Rows};
use crate::fail;
use crate::fail::{code, Done, Failure};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Rows of float32.
pub struct Fvecs {
    path: PathBuf,
    file: BufReader<File>,
    dim: usize,
    rows: u64,
    at: u64,
}

impl Fvecs {
    /// Opens the file; all its rows have the dimension of the first.
    pub fn open(path: &Path) -> Done<Fvecs> {
        let (file, len) = open(path)?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut first = [0; 4];
        if file.read_exact(&mut first).is_err() {
            fail!(code::USAGE, "{}: empty; an .fvecs file has at least one row", path.display());
        }
        let said = i32::from_le_bytes(first);
        let dim = check_dim(path, u64::try_from(said).unwrap_or(0))?;
        let row = 4 + 4 * dim as u64;
        if len % row != 0 {
            fail!(
                code::USAGE,
                "{}: truncated or no .fvecs file: its first row has dimension {dim} ({row} bytes a row), but {len} bytes are no whole number of rows",
                path.display()
            );
        }
        file.rewind().map_err(|e| Failure::io(path.display(), &e))?;
        Ok(Fvecs { path: path.to_path_buf(), file, dim, rows: len / row, at: 0 })
    }
}

impl Rows for Fvecs {
    fn dim(&self) -> usize {
        self.dim
    }
    fn rows(&self) -> u64 {
        self.rows
    }
    fn next(&mut self, max: usize, out: &mut Vec<f32>) -> Done {
        out.clear();
        let mut raw = vec![0; 4 + 4 * self.dim];
        for _ in 0..max {
            if self.at == self.rows {
                break;
            }
            self.file.read_exact(&mut raw).map_err(|e| Failure::io(self.path.display(), &e))?;
            let (head, body) = raw.split_at(4);
            if head != (self.dim as i32).to_le_bytes() {
                let said = i32::from_le_bytes([head[0], head[1], head[2], head[3]]);
                fail!(
                    code::USAGE,
                    "{}: row {} has dimension {said}, the first has {}",
                    self.path.display(),
                    self.at,
                    self.dim
                );
            }
            out.extend(body.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            self.at += 1;
        }
        Ok(())
    }
}

/// Writes results as .ivecs.
pub struct IvecsWriter {
    path: PathBuf,
    file: BufWriter<File>,
    whole: bool,
}

impl Drop for IvecsWriter {
    /// Half a file is worse than none. (What is no regular file, as /dev/stdout, stays.)
    fn drop(&mut self) {
        if !self.whole && std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.is_file()) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl IvecsWriter {
    /// A new file.
    pub fn create(path: &Path) -> Done<IvecsWriter> {
        let file = File::create(path).map_err(|e| Failure::io(path.display(), &e))?;
        Ok(IvecsWriter { path: path.to_path_buf(), file: BufWriter::new(file), whole: false })
    }

    /// Appends a row of ids, which have to fit an int32.
    pub fn row(&mut self, ids: impl ExactSizeIterator<Item = u64>) -> Done {
        let fail = |e: std::io::Error| Failure::io(self.path.display(), &e);
        self.file.write_all(&(ids.len() as u32).to_le_bytes()).map_err(fail)?;
        for id in ids {
            let Ok(small) = i32::try_from(id) else {
                fail!(
                    code::USAGE,
                    "--ivecs: the id {id} is larger than {}, which .ivecs can hold; use --json",
                    i32::MAX
                );
            };
            self.file.write_all(&small.to_le_bytes()).map_err(|e| Failure::io(self.path.display(), &e))?;
        }
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> Done {
        self.file.flush().map_err(|e| Failure::io(self.path.display(), &e))?;
        self.whole = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, rows: &[(i32, usize)], cut: usize) -> Result<Vec<f32>, String> {
        let mut b = Vec::new();
        for (i, (head, n)) in rows.iter().enumerate() {
            b.extend(head.to_le_bytes());
            b.extend((0..*n).flat_map(|j| ((10 * i + j) as f32).to_le_bytes()));
        }
        b.truncate(b.len() - cut);
        let p = std::env::temp_dir().join(format!("vexfs-vecs-{}-{name}", std::process::id()));
        std::fs::write(&p, b).unwrap();
        let r = Fvecs::open(&p).and_then(|mut f| {
            let mut out = Vec::new();
            f.next(usize::MAX, &mut out).map(|()| out)
        });
        std::fs::remove_file(&p).unwrap();
        r.map_err(|e| e.text)
    }

    #[test]
    fn fvecs() {
        assert_eq!(read("ok", &[(2, 2), (2, 2)], 0).unwrap(), [0.0, 1.0, 10.0, 11.0]);
        for (name, rows, cut, say) in [
            ("empty", &[][..], 0, "empty"),
            ("cut", &[(2, 2), (2, 2)][..], 1, "truncated"),
            ("zero", &[(0, 0)][..], 0, "dimension 0"),
            ("neg", &[(-1, 2)][..], 0, "dimension 0"),
            ("big", &[(i32::MAX, 2)][..], 0, "dimension 2147483647"),
            ("mixed", &[(3, 3), (1, 1), (1, 1)][..], 0, "row 1 has dimension 1, the first has 3"),
        ] {
            let e = read(name, rows, cut).unwrap_err();
            assert!(e.contains(say), "{name}: {e}");
        }
    }

    #[test]
    fn ivecs_refuses_wide_ids() {
        let p = std::env::temp_dir().join(format!("vexfs-ivecs-{}", std::process::id()));
        let mut w = IvecsWriter::create(&p).unwrap();
        w.row([7, 2_147_483_647].into_iter()).unwrap();
        assert!(w.row([2_147_483_648].into_iter()).unwrap_err().text.contains("use --json"));
        w.finish().unwrap();
        assert_eq!(&std::fs::read(&p).unwrap()[..12], [2, 0, 0, 0, 7, 0, 0, 0, 255, 255, 255, 127]);
        let mut w = IvecsWriter::create(&p).unwrap();
        assert!(w.row([1 << 40].into_iter()).is_err());
        drop(w);
        assert!(!p.exists(), "half a file was left");
    }
}
