"""Features of frozen backbones: extracted, cached, searched, and classified by logistic regression."""
