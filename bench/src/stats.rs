// SPDX-License-Identifier: GPL-2.0-only
//! Figures from samples: mean with confidence interval, percentiles, coefficient of variation. Nothing is left out
//! of the samples: no outlier is removed.

/// Figures of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of samples.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Half the width of the 95 % confidence interval of the mean (Student's t).
    pub ci95: f64,
    /// Coefficient of variation: standard deviation over mean.
    pub cv: f64,
}

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// Summary of samples; all zero if there is none.
pub fn summary(samples: &[f64]) -> Summary {
    let n = samples.len();
    if n == 0 {
        return Summary { count: 0, mean: 0.0, ci95: 0.0, cv: 0.0 };
    }
    let mean = samples.iter().sum::<f64>() / n as f64;
    if n == 1 {
        return Summary { count: 1, mean, ci95: f64::INFINITY, cv: 0.0 };
    }
    let var = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let t = T95.get(n - 2).copied().unwrap_or(1.96);
    let cv = if mean == 0.0 { 0.0 } else { var.sqrt() / mean };
    Summary { count: n, mean, ci95: t * (var / n as f64).sqrt(), cv }
}

/// The `p`-th percentile (0 to 100), linear between the two nearest samples. 0 if there is none.
pub fn percentile(samples: &[f64], p: f64) -> f64 {
    let mut s = samples.to_vec();
    s.sort_by(f64::total_cmp);
    let Some(last) = s.len().checked_sub(1) else { return 0.0 };
    let at = p / 100.0 * last as f64;
    let (lo, hi) = (at.floor() as usize, at.ceil() as usize);
    s[lo] + (s[hi] - s[lo]) * (at - lo as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let s = summary(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((s.count, s.mean), (8, 5.0));
        // Sample variance 32 / 7, t of 7 degrees of freedom 2.365.
        assert!((s.ci95 - 2.365 * (32.0f64 / 7.0 / 8.0).sqrt()).abs() < 1e-12);
        assert!((s.cv - (32.0f64 / 7.0).sqrt() / 5.0).abs() < 1e-12);
        assert_eq!(summary(&[3.0]).ci95, f64::INFINITY);
        assert_eq!(summary(&[]).count, 0);
        assert_eq!(summary(&[1.0; 40]).ci95, 0.0);
    }

    #[test]
    fn percentiles_by_hand() {
        let s = [40.0, 10.0, 30.0, 20.0];
        assert_eq!(percentile(&s, 0.0), 10.0);
        assert_eq!(percentile(&s, 50.0), 25.0);
        assert_eq!(percentile(&s, 100.0), 40.0);
        assert!((percentile(&s, 95.0) - 38.5).abs() < 1e-9);
        assert_eq!(percentile(&[], 50.0), 0.0);
        let many: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(percentile(&many, 99.0), 99.0);
    }
}
