"""Files that bring a cluster up: KubeRay objects, Ray's launcher file, image recipes. Pure: a job and a site in, data out."""
