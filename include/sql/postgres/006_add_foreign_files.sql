-- Files of `main` that Coldchain did not write: [[start in us, end in us, "path"], ...]. Their windows alone are blocked.
ALTER TABLE coldchain.tables ADD COLUMN foreign_files jsonb NOT NULL DEFAULT '[]';
