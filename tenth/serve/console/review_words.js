// What states and reasons of reviews are called.

export const STATES = {
  waiting: "reviews.waiting",
  approved: "reviews.approved",
  corrected: "reviews.corrected",
  rejected: "reviews.rejected",
  all: "reviews.all",
};

export const REASONS = { rule: "reviews.rule", confidence: "reviews.confidence", person: "reviews.person" };
