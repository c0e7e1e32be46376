"""Training forms: networks that collapse exactly into the plain ones in `models/`, whose frames they use."""
