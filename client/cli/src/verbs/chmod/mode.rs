//! `644`, `u+x,go-w`, `a=rX`: a change of permission bits.

use std::str::FromStr;

/// What `chmod` was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ModeChange {
    /// All bits as they shall be.
    Octal(u16),
    Symbolic(Vec<Clause>),
}

/// One part between commas: for whom, and what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clause {
    /// The bits of the classes meant, as in 0o700 for `u`; 0 if none was named.
    who: u16,
    operator: char,
    what: Vec<What>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// 4, 2 or 1.
    Bit(u16),
    /// Execute, if it is a directory or somebody may execute it already.
    ExecuteIfAny,
    SetId,
    Sticky,
    /// The bits of another class; the shift of its class.
    CopyOf(u16),
}

impl FromStr for ModeChange {
    type Err = String;

    fn from_str(text: &str) -> Result<ModeChange, String> {
        let wrong = || format!("`{text}` is not a mode: give octal digits (640) or changes (u=rwX,go-w)");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return match u16::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o7777 => Ok(ModeChange::Octal(mode)),
                _ => Err(wrong()),
            };
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            parse_part(part, &mut clauses).ok_or_else(wrong)?;
        }
        Ok(ModeChange::Symbolic(clauses))
    }
}

/// `ug+x-w` is two clauses for the same classes.
fn parse_part(part: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let classes = part.len() - part.trim_start_matches(['u', 'g', 'o', 'a']).len();
    let who = part[..classes].chars().fold(0, |who, class| {
        who | match class {
            'u' => 0o700,
            'g' => 0o070,
            'o' => 0o007,
            _ => 0o777,
        }
    });
    let mut rest = part[classes..].chars().peekable();
    rest.peek()?;
    while let Some(operator) = rest.next() {
        if !matches!(operator, '+' | '-' | '=') {
            return None;
        }
        let mut what = Vec::new();
        while let Some(letter) = rest.next_if(|c| !matches!(c, '+' | '-' | '=')) {
            what.push(match letter {
                'r' => What::Bit(4),
                'w' => What::Bit(2),
                'x' => What::Bit(1),
                'X' => What::ExecuteIfAny,
                's' => What::SetId,
                't' => What::Sticky,
                'u' => What::CopyOf(6),
                'g' => What::CopyOf(3),
                'o' => What::CopyOf(0),
                _ => return None,
            });
        }
        clauses.push(Clause { who, operator, what });
    }
    Some(())
}

impl ModeChange {
    /// The new mode. Where a clause names no class it means all of them, but leaves alone what the
    /// umask holds back.
    pub fn apply(&self, mode: u16, directory: bool, umask: u16) -> u16 {
        match self {
            // As GNU chmod does: a directory keeps setuid and setgid unless the digits name them.
            ModeChange::Octal(bits) if directory && *bits < 0o1000 => bits | (mode & 0o6000),
            ModeChange::Octal(bits) => *bits,
            ModeChange::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, directory, umask))
            }
        }
    }
}

impl Clause {
    fn apply(&self, mode: u16, directory: bool, umask: u16) -> u16 {
        let who = if self.who == 0 { 0o777 & !umask } else { self.who };
        let named = if self.who == 0 { 0o777 } else { self.who };
        let mut bits = 0;
        for what in &self.what {
            bits |= match *what {
                What::Bit(bit) => (bit * 0o111) & who,
                What::ExecuteIfAny if directory || mode & 0o111 != 0 => 0o111 & who,
                What::ExecuteIfAny => 0,
                What::SetId => {
                    (if named & 0o700 != 0 { 0o4000 } else { 0 }) | (if named & 0o070 != 0 { 0o2000 } else { 0 })
                }
                What::Sticky if named & 0o007 != 0 => 0o1000,
                What::Sticky => 0,
                What::CopyOf(shift) => (((mode >> shift) & 7) * 0o111) & who,
            };
        }
        match self.operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => {
                let special = if directory {
                    0
                } else {
                    (if named & 0o700 != 0 { 0o4000 } else { 0 }) | (if named & 0o070 != 0 { 0o2000 } else { 0 })
                };
                mode & !(named | special) | bits
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: &str, mode: u16, directory: bool) -> u16 {
        change.parse::<ModeChange>().unwrap().apply(mode, directory, 0o022)
    }

    #[test]
    fn octal_modes_replace_all_bits() {
        assert_eq!(changed("640", 0o777, false), 0o640);
        assert_eq!(changed("4755", 0, false), 0o4755);
        assert_eq!(changed("755", 0o2700, true), 0o2755);
        assert_eq!(changed("0755", 0o4700, false), 0o755);
    }

    #[test]
    fn symbolic_modes_change_what_they_name() {
        for (change, before, after) in [
            ("u+x", 0o644, 0o744),
            ("go-rwx", 0o777, 0o700),
            ("a=r", 0o777, 0o444),
            ("u=rwX,go=rX", 0o600, 0o644),
            ("a+X", 0o644, 0o644),
            ("a+X", 0o744, 0o755),
            ("u+s", 0o755, 0o4755),
            ("g+s,o+t", 0o755, 0o3755),
            ("g=u", 0o740, 0o770),
            ("u-w+x", 0o644, 0o544),
            ("+w", 0o444, 0o644),
            ("=", 0o777, 0o000),
            ("o+s", 0o755, 0o755),
        ] {
            assert_eq!(changed(change, before, false), after, "{change} on {before:o}");
        }
        assert_eq!(changed("a+X", 0o600, true), 0o711);
    }

    #[test]
    fn what_is_no_mode_is_refused() {
        for bad in ["", "9", "77777", "u", "u+q", "z+x", "u+x,", "rwx", "1x"] {
            assert!(bad.parse::<ModeChange>().is_err(), "{bad}");
        }
    }
}
