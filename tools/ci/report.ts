/** What came of each test file of a run, by its path from the project's root; '' stands for what belongs to no file. */
export interface Report {
  readonly files: Record<string, FileReport>;
}

export interface FileReport {
  passed: number;
  /** Failed tests, and what failed outside them: a file that does not load, a hook, an error that nobody caught. */
  failed: number;
  /** A line for each failure. */
  why: string[];
}
