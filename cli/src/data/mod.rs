// SPDX-License-Identifier: GPL-2.0-only
//! Files that people bring and take away: vectors (.npy, .fvecs, a literal), ids, attributes (.jsonl), and
//! results (.ivecs). What is read is checked against the length of the file before anything is allocated for it.

mod attrs;
mod ids;
mod npy;
mod vecs;

pub use attrs::{from_json, to_json, AttrLines, Null};
pub use ids::read_ids;
pub use npy::NpyWriter;
pub use vecs::IvecsWriter;

use crate::fail;
use crate::fail::{code, Done, Failure};
use std::io::Seek;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest dimension of a vector.
pub const DIM_MAX: usize = 65_536;

/// Rows of vectors, read in batches.
pub trait Rows {
    /// Dimension of the vectors.
    fn dim(&self) -> usize;
    /// Number of rows.
    fn rows(&self) -> u64;
    /// Replaces `out` by the next rows, at most `max`; none are left when `out` is empty.
    fn next(&mut self, max: usize, out: &mut Vec<f32>) -> Done;
}

/// Where vectors come from, as the command line says it.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(required = true, multiple = false)]
pub struct VectorSource {
    /// One vector, its elements separated by commas or spaces: '0.1,0.2,0.3'
    #[arg(long, value_name = "NUMBERS", allow_hyphen_values = true)]
    pub vector: Option<String>,
    /// A NumPy file (.npy): a matrix with a row for each vector, or one vector; - is the standard input
    #[arg(long, value_name = "FILE")]
    pub npy: Option<std::path::PathBuf>,
    /// A file in the .fvecs format (each row: int32 dimension, then float32 elements)
    #[arg(long, value_name = "FILE")]
    pub fvecs: Option<std::path::PathBuf>,
}

impl VectorSource {
    /// Opens it.
    pub fn open(&self) -> Done<Box<dyn Rows>> {
        match (&self.vector, &self.npy, &self.fvecs) {
            (Some(text), ..) => Ok(Box::new(Literal::parse(text)?)),
            (_, Some(path), _) => Ok(Box::new(npy::Npy::open(path)?)),
            (_, _, Some(path)) => Ok(Box::new(vecs::Fvecs::open(path)?)),
            _ => fail!(code::USAGE, "no vector given: use --vector, --npy or --fvecs"),
        }
    }

    /// The file that the vectors are in.
    pub fn file(&self) -> Option<&Path> {
        self.npy.as_deref().or(self.fvecs.as_deref())
    }

    /// All rows at once.
    pub fn read(&self) -> Done<(usize, Vec<f32>)> {
        let mut rows = self.open()?;
        let mut out = Vec::new();
        rows.next(usize::MAX, &mut out)?;
        Ok((rows.dim(), out))
    }
}

/// A vector from the command line.
struct Literal {
    elements: Vec<f32>,
    taken: bool,
}

impl Literal {
    fn parse(text: &str) -> Done<Literal> {
        let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
        let mut elements = Vec::new();
        for word in inner.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty()) {
            match word.parse::<f32>() {
                Ok(x) => elements.push(x),
                Err(_) => fail!(code::USAGE, "--vector: '{word}' is not a number (write '0.1,0.2,0.3')"),
            }
            if elements.len() > DIM_MAX {
                fail!(code::USAGE, "--vector: more than {DIM_MAX} elements, the largest dimension");
            }
        }
        if elements.is_empty() {
            fail!(code::USAGE, "--vector: no elements (write '0.1,0.2,0.3')");
        }
        Ok(Literal { elements, taken: false })
    }
}

impl Rows for Literal {
    fn dim(&self) -> usize {
        self.elements.len()
    }
    fn rows(&self) -> u64 {
        1
    }
    fn next(&mut self, max: usize, out: &mut Vec<f32>) -> Done {
        out.clear();
        if !self.taken && max > 0 {
            out.extend_from_slice(&self.elements);
            self.taken = true;
        }
        Ok(())
    }
}

/// The standard input as a file that has a length: what comes is kept in a file without a name.
fn standard_input() -> Done<(std::fs::File, u64)> {
    let fail = |e: std::io::Error| Failure::io("standard input", &e);
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(std::env::temp_dir())
        .map_err(|e| Failure::io(format!("{} (for the standard input)", std::env::temp_dir().display()), &e))?;
    let len = std::io::copy(&mut std::io::stdin().lock(), &mut file).map_err(fail)?;
    file.rewind().map_err(fail)?;
    Ok((file, len))
}

/// Opens a regular file and gives its length; `-` is the standard input.
fn open(path: &Path) -> Done<(std::fs::File, u64)> {
    if path == Path::new("-") || path == Path::new("/dev/stdin") {
        return standard_input();
    }
    let file = std::fs::File::open(path).map_err(|e| Failure::io(path.display(), &e))?;
    let meta = file.metadata().map_err(|e| Failure::io(path.display(), &e))?;
    if !meta.is_file() {
        fail!(code::USAGE, "{}: not a regular file (- reads the standard input)", path.display());
    }
    Ok((file, meta.len()))
}

/// A dimension from a file, in bounds.
fn check_dim(path: &Path, dim: u64) -> Done<usize> {
    match usize::try_from(dim) {
        Ok(d) if (1..=DIM_MAX).contains(&d) => Ok(d),
        _ => fail!(code::USAGE, "{}: dimension {dim} is not between 1 and {DIM_MAX}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        let all = |t: &str| Literal::parse(t).map(|l| l.elements).map_err(|e| e.text);
        assert_eq!(all("1,2.5, -3e-2").unwrap(), [1.0, 2.5, -0.03]);
        assert_eq!(all("[1 2]").unwrap(), [1.0, 2.0]);
        assert!(all("").unwrap_err().contains("no elements"));
        assert!(all("1,two").unwrap_err().contains("'two' is not a number"));
    }
}
